"""Asks a server and pywbem's own mock, made from the same MOF, the same questions and compares the answers."""

import functools
import os
import sys

import pywbem
import pywbem_mock

url, toy = sys.argv[1:3]
real = pywbem.WBEMConnection(url, ("ann", "toys"), default_namespace="root/toy")
mock = pywbem_mock.FakedWBEMConnection(default_namespace="root/toy")
mock.compile_mof_file(os.environ["QUALIFIERS"])
mock.compile_mof_file(os.path.join(toy, "toy.mof"))
mock.compile_mof_file(os.path.join(toy, "instances.mof"))
compared = 0


@functools.cache
def declared(name):
    return mock.GetClass(name, LocalOnly=False).properties


def value(it):
    """A value without what the mock does not know."""
    if isinstance(it, (list, tuple)):
        return [value(one) for one in it]
    if isinstance(it, pywbem.CIMInstanceName):
        keys = sorted((key.lower(), str(value(one))) for key, one in it.keybindings.items())
        return ("instance", it.classname.lower(), keys)
    if isinstance(it, pywbem.CIMClassName):
        return ("class", it.classname.lower())
    if isinstance(it, pywbem.CIMInstance):
        # The mock has only what was set and knows no defaults; embedded objects no portable MOF can set.
        usual = declared(it.classname)
        given = {
            name.lower(): (prop.type, value(prop.value))
            for name, prop in it.properties.items()
            if prop.value is not None and name not in ("Parts", "Anything") and not is_usual(prop, usual[name])
        }
        return (it.classname.lower(), value(it.path) if it.path else None, sorted(given.items()))
    if isinstance(it, pywbem.CIMClass):
        # Whoever asks for local members gets those that override others too; not so from the mock.
        groups = [[m for m in group.values() if m.name != "Caption"] for group in (it.properties, it.methods)]
        members = [sorted(map(member, group)) for group in groups]
        return (it.classname, it.superclass, qualifiers(it), members)
    # The mock keeps the quotes of MOF's characters.
    return it.strip("'") if isinstance(it, str) else it


def is_usual(prop, declared):
    return declared.value is not None and prop.value == declared.value


def qualifiers(it):
    # The mock knows not how qualifiers on parameters travel, nor that those on classes do.
    travels = not isinstance(it, pywbem.CIMParameter)
    return sorted(
        (q.name.lower(), q.type, str(q.value), travels and (bool(q.propagated), q.overridable, q.tosubclass))
        for q in it.qualifiers.values()
        if not (isinstance(it, pywbem.CIMClass) and q.propagated)
    )


def member(it):
    what = [it.name, qualifiers(it), str(it.class_origin), bool(it.propagated)]
    if isinstance(it, pywbem.CIMProperty):
        return str(what + [it.type, it.is_array, it.array_size, it.reference_class, str(it.value), it.embedded_object])
    parameters = [
        (p.name, p.type, p.is_array, p.reference_class, qualifiers(p)) for p in it.parameters.values()
    ]
    return str(what + [it.return_type, sorted(parameters)])


def answer(conn, name, args, more):
    try:
        result = getattr(conn, name)(*args, **more)
    except pywbem.CIMError as err:
        return ("error", err.status_code)
    if isinstance(result, list):
        return sorted((value(one) for one in result), key=str)
    return value(result)


def same(name, *args, **more):
    global compared
    ours, theirs = (answer(conn, name, args, more) for conn in (real, mock))
    assert ours == theirs, f"{name} {args} {more}:\nwe say   {ours}\nthe mock {theirs}"
    compared += 1


classes = [name for name in mock.EnumerateClassNames(DeepInheritance=True)]
for name in classes:
    for local in (True, False):
        same("GetClass", name, LocalOnly=local, IncludeQualifiers=local, IncludeClassOrigin=True)
    same("GetClass", name, LocalOnly=False, IncludeClassOrigin=False, PropertyList=["caption", "Slot"])
    same("EnumerateClassNames", ClassName=name)
    same("EnumerateClassNames", ClassName=name, DeepInheritance=True)
    same("EnumerateInstanceNames", name)
    same("EnumerateInstances", name)
    same("EnumerateInstances", name, DeepInheritance=False)
    same("EnumerateInstances", name, PropertyList=["Caption", "Since"])
    # Not the associators of classes: the mock counts the end that the class itself plays among them.
    same("ReferenceNames", name)
    same("References", name, IncludeQualifiers=True)
for path in [path for name in classes for path in mock.EnumerateInstanceNames(name)]:
    same("GetInstance", path)
    same("GetInstance", path, PropertyList=["State"])
    same("AssociatorNames", path)
    same("Associators", path)
    same("ReferenceNames", path)
    same("References", path)
for path in mock.EnumerateInstanceNames("Toy_Motor") + mock.EnumerateInstanceNames("Toy_Box")[:1]:
    for role in ("Held", "Holder", "Needy", "Needed", "Keeper", "Nobody"):
        same("AssociatorNames", path, Role=role)
        same("AssociatorNames", path, ResultRole=role)
        same("ReferenceNames", path, Role=role)
    for klass in ("Toy_Box", "Toy_Device", "Toy_Motor", "Toy_Element"):
        same("AssociatorNames", path, ResultClass=klass)
    for klass in ("Toy_Holds", "Toy_Needs"):
        same("AssociatorNames", path, AssocClass=klass)
        same("ReferenceNames", path, ResultClass=klass)
same("GetInstance", pywbem.CIMInstanceName("Toy_Box", {"Name": "none"}))
same("GetInstance", pywbem.CIMInstanceName("Toy_X", {"Name": "none"}))
same("EnumerateInstances", "Toy_X")
same("EnumerateClassNames", ClassName="Toy_X")
same("GetClass", "Toy_X")
same("EnumerateInstances", "Toy_Box", namespace="root/x")
same("GetQualifier", "Nothing")
for name in ("Key", "Values", "Description", "Association"):
    ours, theirs = (conn.GetQualifier(name) for conn in (real, mock))
    # What the mock was not told it does not fill in.
    assert (ours.type, ours.is_array, ours.value) == (theirs.type, theirs.is_array, theirs.value), (ours, theirs)
    assert set(ours.scopes) == {scope for scope, is_set in theirs.scopes.items() if is_set} or theirs.scopes["ANY"]
print(compared, "answers are the same")
