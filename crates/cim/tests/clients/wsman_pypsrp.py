"""Drives WS-Management with pypsrp, whose envelopes are those of Windows, and checks what came back."""

import sys
import urllib.parse
import xml.etree.ElementTree as ET

from pypsrp.exceptions import WSManFaultError
from pypsrp.wsman import OptionSet, SelectorSet, WSMan

port = urllib.parse.urlsplit(sys.argv[1]).port
WMI = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/toy/"
DMTF = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
A = "{http://schemas.xmlsoap.org/ws/2004/08/addressing}"
W = "{http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd}"
N = "{http://schemas.xmlsoap.org/ws/2004/09/enumeration}"
CIM = "{http://schemas.dmtf.org/wbem/wscim/1/common}"
XSI = "{http://www.w3.org/2001/XMLSchema-instance}"
WQL = "http://schemas.microsoft.com/wbem/wsman/1/WQL"


def selected(**keys):
    selectors = SelectorSet()
    for name, value in keys.items():
        selectors.add_option(name, value)
    return selectors


def values(element, name):
    return [child.text for child in element if child.tag.split("}")[1] == name]


def fails(subcode, call, *args, **more):
    try:
        call(*args, **more)
    except WSManFaultError as err:
        assert subcode in str(err), (subcode, str(err))
        return
    raise AssertionError("that cannot be")


with WSMan("127.0.0.1", port=port, ssl=False, username="ann", password="toys", auth="basic", encryption="never") as server:
    server.update_max_payload_size()
    assert server.max_envelope_size == 500 * 1024, server.max_envelope_size

    # Get, by all keys, by some, by none; in both families.
    for uri, more in ((WMI, {}), (DMTF, {"__cimnamespace": "root/toy"})):
        lamp = server.get(uri + "Toy_Device", selector_set=selected(BoxName="RED", Slot="1", **more))[0]
        assert lamp.tag == "{%sToy_Device}Toy_Device" % uri and lamp.get(XSI + "type") == "p:Toy_Device_Type"
        assert values(lamp, "Caption") == ["lamp"] and values(lamp, "Samples") == ["1", "2", "4294967295"]
        assert values(lamp, "Flags") == ["true", "false"] and values(lamp, "Letter") == ["x"]
        assert lamp.find("{*}Made")[0].tag == CIM + "Datetime" and lamp.find("{*}Made")[0].text == "2025-03-01T14:00:00+01:00"
        assert lamp.find("{*}Lasts")[0].tag == CIM + "Interval" and lamp.find("{*}Notes").get(XSI + "nil") == "true"
        part = lamp.find("{*}Parts")
        assert part.get(XSI + "type") == "q:Toy_Part_Type" and values(part, "Label") == ["<cog>"]
        assert part[0].tag == "{%sToy_Part}Label" % uri
        service = server.get(uri + "Toy_Service", selector_set=selected(**more) if more else None)[0]
        assert values(service, "Name") == ["keeper"]
    fails("InvalidSelectors", server.get, WMI + "Toy_Device", selector_set=selected(BoxName="red"))
    fails("2150858752", server.get, WMI + "Toy_Device", selector_set=selected(BoxName="red", Slot="9"))
    fails("2150858752", server.get, WMI + "Toy_Nothing")
    fails("2150858778", server.get, WMI.replace("toy", "nothing") + "Toy_Device")

    # Put: one property, and everything back as it came, with a change.
    def put(*properties):
        body = ET.Element("{%sToy_Device}Toy_Device" % WMI)
        for name, value in properties:
            child = ET.SubElement(body, "{%sToy_Device}%s" % (WMI, name))
            child.text = value
            if value is None:
                child.set(XSI + "nil", "true")
        return server.put(WMI + "Toy_Device", resource=body, selector_set=selected(BoxName="red", Slot="1"))[0]

    changed = put(("Notes", "<new> & ü"), ("Samples", "7"))
    assert values(changed, "Notes") == ["<new> & ü"] and values(changed, "Samples") == ["7"], ET.tostring(changed)
    assert values(put(("Notes", None)), "Notes") == [None]
    whole = server.get(WMI + "Toy_Device", selector_set=selected(BoxName="red", Slot="1"))[0]
    whole.find("{*}Caption").text = "changed"
    back = server.put(WMI + "Toy_Device", resource=whole, selector_set=selected(BoxName="red", Slot="1"))[0]
    assert values(back, "Caption") == ["changed"] and values(back.find("{*}Parts"), "Size") == ["7"]
    fails("InvalidRepresentation", put, ("Colour", "red"))
    fails("InvalidRepresentation", put, ("State", "70000"))

    # Create and delete.
    body = ET.Element("{%sToy_Box}Toy_Box" % WMI)
    ET.SubElement(body, "{%sToy_Box}Name" % WMI).text = "blue"
    created = server.create(WMI + "Toy_Box", body)[0]
    selector = created.find(A + "ReferenceParameters/" + W + "SelectorSet/" + W + "Selector[@Name='Name']")
    assert selector.text == "blue", ET.tostring(created)
    fails("AlreadyExists", server.create, WMI + "Toy_Box", body)
    server.delete(WMI + "Toy_Box", selector_set=selected(Name="blue"))
    fails("2150858752", server.delete, WMI + "Toy_Box", selector_set=selected(Name="blue"))

    # Enumerate and pull.
    def enumerate(uri, filter=None, dialect=WQL, mode=None, optimize=None, selectors=None):
        body = ET.Element(N + "Enumerate")
        if optimize:
            ET.SubElement(body, W + "OptimizeEnumeration")
            ET.SubElement(body, W + "MaxElements").text = str(optimize)
        if filter is not None:
            element = ET.SubElement(body, W + "Filter", Dialect=dialect)
            element.text = filter if isinstance(filter, str) else None
            element.extend([] if isinstance(filter, str) else [filter])
        if mode:
            ET.SubElement(body, W + "EnumerationMode").text = mode
        answer = server.enumerate(uri, resource=body, selector_set=selectors)[0]
        items, context = list(answer.find(W + "Items") if optimize else []), answer.find(N + "EnumerationContext").text
        while context:
            body = ET.Element(N + "Pull")
            ET.SubElement(body, N + "EnumerationContext").text = context
            # Another URI than the enumeration had, as some clients do.
            answer = server.pull("http://schemas.microsoft.com/wbem/wsman/1/wmi/root/cimv2/*", resource=body)[0]
            items.extend(answer.find(N + "Items"))
            element = answer.find(N + "EnumerationContext")
            assert (element is None) == (answer.find(N + "EndOfSequence") is not None)
            context = element.text if element is not None else None
        return items

    assert [values(item, "Slot")[0] for item in enumerate(WMI + "Toy_Device")] == ["1", "2", "3"]
    assert len(enumerate(WMI + "Toy_Device", optimize=2)) == 3 and len(enumerate(WMI + "Toy_Device", optimize=99)) == 3
    found = enumerate(WMI + "*", "select * from Toy_Device where Caption = 'MOTOR'")
    assert found[0].tag == "{%sToy_Motor}Toy_Motor" % WMI
    projected = enumerate(WMI + "*", "select Slot, Caption from Toy_Device where Slot < 3")
    assert [item.tag for item in projected] == [W + "XmlFragment"] * 2 and projected[0][0].tag == "Slot"
    assert enumerate(WMI + "*", "select * from Toy_Device where Slot = 77") == []
    references = enumerate(WMI + "*", "references of {Toy_Device.BoxName='red',Slot=1}")
    assert len(references) == 3
    target = references[0].find("{*}Held")
    assert target[0].tag == A + "Address" and target.find(".//" + W + "Selector[@Name='Slot']").text == "1"
    epr = enumerate(WMI + "Toy_Motor", mode="EnumerateEPR")[0]
    assert epr.tag == A + "EndpointReference"
    both = enumerate(WMI + "Toy_Motor", mode="EnumerateObjectAndEPR", optimize=5)[0]
    assert both.tag == W + "Item" and both[0].tag.endswith("Toy_Motor") and both[1].tag == A + "EndpointReference"
    B = "{http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd}"
    asked = ET.Element(B + "AssociatedInstances")
    ET.SubElement(asked, B + "Object").extend(list(epr))
    ET.SubElement(asked, B + "ResultClassName").text = "Toy_Box"
    dialect = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter"
    boxes = enumerate(DMTF + "*", asked, dialect, selectors=selected(__cimnamespace="root/toy"))
    assert [values(item, "Name") for item in boxes] == [["red"]]
    fails("CannotProcessFilter", enumerate, WMI + "*", "select")
    fails("FilterDialectRequestedUnavailable", enumerate, WMI + "*", "x", "urn:nothing")

    # Methods.
    def invoke(klass, method, parameters=(), keys=None, uri=WMI):
        body = ET.Element("{%s}%s_INPUT" % (uri + klass, method))
        for name, value in parameters:
            child = ET.SubElement(body, "{%s}%s" % (uri + klass, name))
            if isinstance(value, str):
                child.text = value
            else:
                child.extend(value)
        answer = server.invoke(uri + klass + "/" + method, uri + klass, body, selector_set=keys)
        return answer.find("{http://www.w3.org/2003/05/soap-envelope}Body")[0]

    answer = invoke("Toy_Device", "Reset", [("Level", "3")], selected(BoxName="red", Slot="1"))
    assert answer.tag == "{%sToy_Device}Reset_OUTPUT" % WMI
    assert values(answer, "ReturnValue") == ["4096"] and values(answer, "Was") == ["3"]
    size = ET.Element("{%sToy_Part}Size" % WMI)
    size.text = "5"
    parameters = [
        ("Truth", "1"), ("Text", "<&>\nä"), ("Numbers", "1"), ("Numbers", "2"), ("Moment", "2030-01-01T00:00:00Z"),
        ("Device", list(epr)), ("Part", [size]), ("Big", "-9223372036854775808"), ("Real", "1.5e300"),
    ]
    answer = invoke("Toy_Service", "Echo", parameters)
    assert values(answer, "Truth") == ["true"] and values(answer, "Text") == ["<&>\nä"]
    assert values(answer, "Numbers") == ["1", "2"] and answer.find("{*}Moment")[0].text == "2030-01-01T00:00:00Z"
    assert answer.find("{*}Device").find(".//" + W + "Selector[@Name='Slot']").text == "3"
    assert values(answer.find("{*}Part"), "Size") == ["5"], ET.tostring(answer)
    settings = '<INSTANCE CLASSNAME="Toy_Part"><PROPERTY NAME="Size" TYPE="uint8"><VALUE>3</VALUE></PROPERTY></INSTANCE>'
    answer = invoke("Toy_Service", "Import", [("Settings", settings)])
    assert values(answer, "Understood") == [settings]
    pasted = invoke("Toy_Service", "Import", [("Settings", [ET.fromstring(settings)])])
    assert values(pasted, "ReturnValue") == ["0"]
    assert values(invoke("Toy_Service", "Ping", [("Text", "x")]), "Echoed") == ["x"]
    assert values(invoke("Toy_Service", "Fail", [("Code", "32773")]), "ReturnValue") == ["32773"]
    fails("InternalError", invoke, "Toy_Service", "Fail", [("Code", "0")])
    fails("ActionNotSupported", invoke, "Toy_Service", "Sing")
    fails("InvalidParameter", invoke, "Toy_Service", "Rest", [("X", "1")])
    fails("InvalidParameter", invoke, "Toy_Device", "Reset", [("Level", "x")], selected(BoxName="red", Slot="1"))
    options = OptionSet()
    options.add_option("msftwinrm:UsePreciseArrays", "true", {"Type": "xs:boolean"})
    box = server.get(WMI + "Toy_Device", selector_set=selected(BoxName="red", Slot="2"), option_set=options)[0]
    assert box.find("{*}Tags").get("{http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd}IsNullArray") == "true"
print("good")
