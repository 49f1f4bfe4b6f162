"""Drives every operation with pywbem and checks what it understood."""

import sys

import pywbem
from pywbem import CIMClassName, CIMDateTime, CIMError, CIMInstance, CIMInstanceName, CIMProperty, Uint8, Uint16, Uint32

url = sys.argv[1]
conn = pywbem.WBEMConnection(url, ("ann", "toys"), default_namespace="root/toy", use_pull_operations=True)


def fails(code, call, *args, **more):
    try:
        call(*args, **more)
    except CIMError as err:
        assert err.status_code == code, err
        return
    raise AssertionError(f"{call} succeeded")


LAMP = CIMInstanceName("Toy_Device", {"BoxName": "red", "Slot": Uint16(1)}, namespace="root/toy")
MOTOR = CIMInstanceName("Toy_Motor", {"BoxName": "red", "Slot": Uint16(3)}, namespace="root/toy")
SERVICE = CIMInstanceName("Toy_Service", {"SystemName": "toys", "Name": "keeper"}, namespace="root/toy")

# Instances.
names = conn.EnumerateInstanceNames("Toy_Device")
assert names == [LAMP, CIMInstanceName("Toy_Device", {"BoxName": "red", "Slot": 2}, namespace="root/toy"), MOTOR], names
lamp = conn.GetInstance(LAMP)
assert lamp["Caption"] == "lamp" and lamp["State"] == 2 and lamp["Fragile"] is True
assert lamp["Balance"] == -9223372036854775808 and lamp["Letter"] == "x"
assert lamp["Made"] == CIMDateTime("20250301140000.000000+060") and lamp["Lasts"].is_interval
assert lamp["Samples"] == [1, 2, 4294967295] and lamp["Tags"] == ["a", "", "<b>"] and lamp["Flags"] == [True, False]
assert lamp["Parts"][0]["Label"] == "<cog>" and lamp["Parts"][0]["Size"] == 7, lamp["Parts"]
assert lamp["Anything"].classname == "Toy_Part"
assert lamp["Notes"] is None and "Notes" in lamp
assert conn.GetInstance(names[1])["Samples"] == [] and conn.GetInstance(names[1])["Notes"] == ""
odd = conn.GetInstance(CIMInstanceName("Toy_Box", {"Name": 'C:\\odd "box", <a> & ä'}))
assert odd["Caption"] == "toy"
few = conn.EnumerateInstances("Toy_Element", PropertyList=["notes", "SLOT"], IncludeClassOrigin=True)
assert len(few) == 6 and set(few[3].properties) <= {"Notes", "Slot"}, few[3].properties
assert few[3].properties["Notes"].class_origin == "Toy_Element"
assert set(conn.EnumerateInstances("Toy_Element", DeepInheritance=False)[0].properties) == {"Caption", "Notes"}
assert not conn.GetInstance(LAMP, PropertyList=[]).properties

changed = CIMInstance("Toy_Device", {"Notes": "<new> & ü", "Samples": [Uint32(9)]}, path=LAMP)
conn.ModifyInstance(changed)
assert conn.GetInstance(LAMP)["Notes"] == "<new> & ü" and conn.GetInstance(LAMP)["Samples"] == [9]
nothing = CIMProperty("Notes", None, type="string")
conn.ModifyInstance(CIMInstance("Toy_Device", {"Notes": nothing}, path=LAMP), PropertyList=["Notes"])
assert conn.GetInstance(LAMP)["Notes"] is None
made = conn.CreateInstance(CIMInstance("Toy_Device", {"BoxName": "red", "Slot": Uint16(9)}))
assert made.keybindings["Slot"] == 9 and made.namespace == "root/toy"
assert conn.GetInstance(made)["Caption"] == "device"
conn.DeleteInstance(made)
fails(6, conn.GetInstance, made)
fails(6, conn.DeleteInstance, made)
fails(5, conn.EnumerateInstances, "Toy_Nothing")
fails(3, conn.EnumerateInstances, "Toy_Device", namespace="root/nothing")
fails(13, conn.ModifyInstance, CIMInstance("Toy_Device", {"State": "on"}, path=LAMP))

# Queries.
found = conn.ExecQuery("WQL", "SELECT Slot, Caption FROM Toy_Device WHERE Caption LIKE '%o%' AND NOT Slot = 1")
assert len(found) == 1 and found[0].path.keybindings["Slot"] == 3 and set(found[0].properties) == {"Slot", "Caption"}
fails(14, conn.ExecQuery, "SQL", "x")
fails(15, conn.ExecQuery, "WQL", "SELECT")

# Associations, between instances and between classes.
assert {str(path.classname) for path in conn.AssociatorNames(LAMP)} == {"Toy_Box", "Toy_Service", "Toy_Motor"}
associated = conn.Associators(LAMP, AssocClass="Toy_Holds", ResultClass="Toy_Box", Role="Held", ResultRole="Holder")
assert [inst["Name"] for inst in associated] == ["red"] and associated[0].path.host
references = conn.References(LAMP, ResultClass="Toy_Holds")
assert references[0]["Since"] == 1999 and references[0]["Held"] == LAMP, references[0]["Held"]
assert len(conn.ReferenceNames(LAMP)) == 3
classes = conn.Associators("Toy_Device")
assert {klass.classname for _, klass in classes} == {"Toy_Box", "Toy_Service", "Toy_Device"}
assert len(conn.ReferenceNames("Toy_Device")) == 3 and len(conn.References("Toy_Device")) == 3
assert isinstance(conn.AssociatorNames("Toy_Motor")[0], CIMClassName)

# Pulled enumerations.
whole = list(conn.IterEnumerateInstances("Toy_Device", MaxObjectCount=1))
assert [inst.path.keybindings["Slot"] for inst in whole] == [1, 2, 3]
assert len(list(conn.IterEnumerateInstancePaths("Toy_Device", MaxObjectCount=2))) == 3
assert len(list(conn.IterAssociatorInstances(LAMP, MaxObjectCount=1))) == 3
assert len(list(conn.IterAssociatorInstancePaths(LAMP, MaxObjectCount=1))) == 3
assert len(list(conn.IterReferenceInstances(LAMP, MaxObjectCount=2))) == 3
assert len(list(conn.IterReferenceInstancePaths(LAMP, MaxObjectCount=2))) == 3
found = conn.IterQueryInstances(
    "WQL", "SELECT * FROM Toy_Device WHERE Slot > 1", MaxObjectCount=1, ReturnQueryResultClass=True
)
assert "Slot" in found.query_result_class.properties and len(list(found.generator)) == 2
result = conn.OpenEnumerateInstances(
    "Toy_Device", FilterQueryLanguage="DMTF:FQL", FilterQuery="Slot = 2", MaxObjectCount=5, OperationTimeout=10
)
assert result.eos and len(result.instances) == 1
result = conn.OpenEnumerateInstances("Toy_Device", MaxObjectCount=1)
conn.CloseEnumeration(result.context)
fails(21, conn.PullInstancesWithPath, result.context, 1)
fails(22, conn.OpenEnumerateInstances, "Toy_Device", OperationTimeout=100000)
fails(26, conn.OpenEnumerateInstances, "Toy_Device", ContinueOnError=True)

# Classes and qualifiers.
motor = conn.GetClass("Toy_Motor", LocalOnly=False, IncludeClassOrigin=True)
assert motor.superclass == "Toy_Device" and motor.properties["Slot"].qualifiers["Key"].value is True
assert motor.properties["Slot"].propagated and motor.properties["Slot"].class_origin == "Toy_Device"
assert motor.properties["Caption"].value == "device" and motor.properties["Speed"].value == 1.5
assert motor.methods["Reset"].parameters["Level"].type == "uint16"
assert set(conn.GetClass("Toy_Motor").properties) == {"Speed"}
assert not conn.GetClass("Toy_Motor", IncludeQualifiers=False, LocalOnly=False).properties["Slot"].qualifiers
assert set(conn.GetClass("Toy_Motor", LocalOnly=False, PropertyList=["slot"]).properties) == {"Slot"}
assert "Toy_Motor" in conn.EnumerateClassNames(DeepInheritance=True) and "Toy_Motor" not in conn.EnumerateClassNames()
assert conn.EnumerateClassNames(ClassName="Toy_Device") == ["Toy_Motor"]
assert {klass.classname for klass in conn.EnumerateClasses(ClassName="Toy_Element", DeepInheritance=True)} == {
    "Toy_Box", "Toy_Device", "Toy_Motor", "Toy_Service"
}
key = conn.GetQualifier("Key")
assert key.type == "boolean" and not key.overridable and key.scopes["PROPERTY"] and "CLASS" not in key.scopes
assert len(conn.EnumerateQualifiers()) > 60
fails(6, conn.GetClass, "Toy_Nothing")
fails(7, conn.DeleteClass, "Toy_Motor")
fails(7, conn.CreateClass, motor)
fails(7, conn.SetQualifier, key)

# Methods.
assert conn.InvokeMethod("Reset", LAMP, Level=Uint16(3)) == (4096, {"Was": 3})
part = CIMInstance("Toy_Part", {"Label": "<a> & 'b'", "Size": Uint8(5)})
sent = {
    "Truth": True,
    "Small": Uint8(255),
    "Big": pywbem.Sint64(-9223372036854775808),
    "Real": pywbem.Real64(-1.5e300),
    "Letter": pywbem.Char16("ß") if hasattr(pywbem, "Char16") else None,
    "Text": "line\nnext <&> \"quoted\" ä",
    "Moment": CIMDateTime("20300101000000.000000+000"),
    "Numbers": [Uint16(1), Uint16(65535)],
    "Texts": ["a", "", "ü"],
    "Device": LAMP,
    "Part": part,
    "Parts": [part, part],
}
sent = {name: value for name, value in sent.items() if value is not None}
value, got = conn.InvokeMethod("Echo", SERVICE, list(sent.items()))
assert value == 0 and set(got) == set(sent), got
for name, expected in sent.items():
    if name in ("Part", "Parts"):
        first = got[name][0] if name == "Parts" else got[name]
        assert dict(first.items()) == {"Label": "<a> & 'b'", "Size": 5}, first
    else:
        assert got[name] == expected, (name, got[name])
nothing = [("Text", None), ("Numbers", []), ("Device", None)]
value, got = conn.InvokeMethod("Echo", SERVICE, nothing)
assert value == 0 and got == {"Numbers": []}, got
settings = '<INSTANCE CLASSNAME="Toy_Part"><PROPERTY NAME="Size" TYPE="uint8"><VALUE>3</VALUE></PROPERTY></INSTANCE>'
value, got = conn.InvokeMethod("Import", SERVICE, Settings=settings)
assert value == 0 and got["Understood"] == settings and got["Device"] == LAMP, got
assert conn.InvokeMethod("Import", SERVICE, Settings="nonsense")[0] == 32776
assert conn.InvokeMethod("Ping", "Toy_Service", Text="x") == (0, {"Echoed": "x"})
assert conn.InvokeMethod("Fail", SERVICE, Code=Uint32(32773)) == (32773, {})
fails(1, conn.InvokeMethod, "Fail", SERVICE, Code=Uint32(0))
fails(17, conn.InvokeMethod, "Sing", SERVICE)
fails(4, conn.InvokeMethod, "Rest", "Toy_Service")
fails(4, conn.InvokeMethod, "Rest", SERVICE, Colour="red")
fails(13, conn.InvokeMethod, "Reset", LAMP, Level=Uint32(3))
fails(6, conn.InvokeMethod, "Rest", CIMInstanceName("Toy_Service", {"SystemName": "x", "Name": "y"}))

# The server as a whole.
server = pywbem.WBEMServer(conn)
assert server.interop_ns == "interop" and server.brand == "Toys" and server.version == "1.2"
assert set(server.namespaces) == {"root/toy", "interop", "root/interop"}, server.namespaces
assert server.get_selected_profiles("SNIA", "Toys")[0]["RegisteredVersion"] == "1.0"
print("good")
