"""Subscribes with pywbem's subscription manager and listens with its listener."""

import queue
import socket
import sys

import pywbem

conn = pywbem.WBEMConnection(sys.argv[1], ("ann", "toys"), default_namespace="root/toy")
told = queue.Queue()



def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening():
    """Somebody else may take the port before the listener does."""
    for attempt in range(10):
        listener = pywbem.WBEMListener("127.0.0.1", http_port=free_port())
        listener.add_callback(lambda indication, host: told.put(indication))
        try:
            listener.start()
            return listener
        except pywbem.ListenerPortError:
            pass
    raise AssertionError("no port to listen on")


listener = listening()
lamp = pywbem.CIMInstanceName("Toy_Device", {"BoxName": "red", "Slot": pywbem.Uint16(1)}, namespace="root/toy")


def change(notes):
    conn.ModifyInstance(pywbem.CIMInstance("Toy_Device", {"Notes": notes}, path=lamp))


try:
    with pywbem.WBEMSubscriptionManager("toys") as manager:
        server = manager.add_server(pywbem.WBEMServer(conn))
        destination = manager.add_destination(server, f"http://127.0.0.1:{listener.http_port}", destination_id="d")
        wanted = "SELECT * FROM CIM_InstModification WHERE SourceInstance ISA Toy_Device AND SourceInstance.State = 2"
        other = "SELECT * FROM CIM_InstDeletion"
        for number, query in enumerate((wanted, other)):
            selects = manager.add_filter(server, ["root/toy"], query, query_language="WQL", filter_id=f"f{number}")
            manager.add_subscriptions(server, selects.path, destination.path)
        assert len(manager.get_all_subscriptions(server)) == 2
        change("a")
        indication = told.get(timeout=20)
        assert indication.classname == "CIM_InstModification", indication
        assert indication["SourceInstance"]["Notes"] == "<&>" and indication["SourceInstance"]["Slot"] == 1
        kept = manager.get_all_filters(server)[0]
        assert kept["SystemName"] == "toyhost" and kept["Query"] == wanted
    # The manager took everything away again, and nobody is told any more.
    interop = "interop"
    for name in ("CIM_IndicationSubscription", "CIM_IndicationFilter", "CIM_ListenerDestinationCIMXML"):
        assert conn.EnumerateInstanceNames(name, namespace=interop) == [], name
    change("b")
    assert told.empty()
finally:
    listener.stop()
print("good")
