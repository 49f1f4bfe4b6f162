"""Enumerates and invokes with dracclient, which sends no content type and asks in CQL."""

import sys
import urllib.parse

from dracclient import exceptions
from dracclient.wsman import Client

port = urllib.parse.urlsplit(sys.argv[1]).port
client = Client("127.0.0.1", "ann", "toys", port=port, protocol="http")
URI = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/Toy_Device"
SERVICE = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/Toy_Service"
ITEMS = ".//{http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd}Items"


def slots(answer):
    return [item.find("{%s}Slot" % item.nsmap["p"]).text for item in answer.find(ITEMS)]


assert slots(client.enumerate(URI)) == ["1", "2", "3"]
assert slots(client.enumerate(URI, max_elems=1)) == ["1", "2", "3"]
assert slots(client.enumerate(URI, filter_query="select * from Toy_Device where Slot > 1")) == ["2", "3"]
assert slots(client.enumerate(URI, filter_query="select * from Toy_Device where Slot = 3", filter_dialect="wql")) == ["3"]
assert len(client.enumerate(URI, filter_query="select * from Toy_Device where Slot = 77").find(ITEMS)) == 0
answer = client.invoke(URI, "Reset", {"BoxName": "red", "Slot": "1"}, {"Level": "3"})
assert answer.find(".//{%s}Was" % URI).text == "3" and answer.find(".//{%s}ReturnValue" % URI).text == "4096"
answer = client.invoke(SERVICE, "Echo", {}, {"Text": "<x>", "Numbers": ["1", "2"]})
assert [element.text for element in answer.findall(".//{%s}Numbers" % SERVICE)] == ["1", "2"]
try:
    client.invoke(SERVICE, "Sing", {}, {})
    raise SystemExit("that cannot be")
except exceptions.WSManInvalidResponse as err:
    assert "500" in str(err)
print("good")
