use std::sync::Arc;

use futures::executor::block_on;

use super::*;
use crate::toy::{NOW, broker};

fn server() -> CimXml<String> {
    CimXml::new(Arc::new(broker()))
}

const LAMP: &str = r#"<INSTANCENAME CLASSNAME="Toy_Device"><KEYBINDING NAME="Slot"><KEYVALUE VALUETYPE="numeric">1</KEYVALUE></KEYBINDING><KEYBINDING NAME="boxname"><KEYVALUE>red</KEYVALUE></KEYBINDING></INSTANCENAME>"#;
const SERVICE: &str = r#"<INSTANCENAME CLASSNAME="Toy_Service"><KEYBINDING NAME="SystemName"><KEYVALUE>toys</KEYVALUE></KEYBINDING><KEYBINDING NAME="Name"><KEYVALUE>keeper</KEYVALUE></KEYBINDING></INSTANCENAME>"#;
const SPACE: &str = r#"<LOCALNAMESPACEPATH><NAMESPACE NAME="root"/><NAMESPACE NAME="toy"/></LOCALNAMESPACEPATH>"#;

fn message(call: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="utf-8"?><CIM CIMVERSION="2.0" DTDVERSION="2.0"><MESSAGE ID="42" PROTOCOLVERSION="1.0"><SIMPLEREQ>{call}</SIMPLEREQ></MESSAGE></CIM>"#
    )
}

fn send(server: &CimXml<String>, caller: &str, headers: &[(&str, &str)], body: &str, now: Duration) -> HttpResponse {
    let request = HttpRequest { method: "POST", headers, body: body.as_bytes() };
    block_on(server.handle(request, &caller.to_string(), now))
}

fn body(response: &HttpResponse) -> &str {
    std::str::from_utf8(&response.body).unwrap()
}

/// What stands within the response to an operation.
fn operation(server: &CimXml<String>, name: &str, parameters: &str) -> String {
    operation_at(server, "ann", NOW, name, parameters)
}

fn operation_at(server: &CimXml<String>, caller: &str, now: Duration, name: &str, parameters: &str) -> String {
    let call = format!(r#"<IMETHODCALL NAME="{name}">{SPACE}{parameters}</IMETHODCALL>"#);
    let headers = [("CIMOperation", "MethodCall"), ("CIMMethod", name), ("CIMObject", "root/toy")];
    let response = send(server, caller, &headers, &message(&call), now);
    assert_eq!(response.status, 200, "{}", body(&response));
    let inner = body(&response)
        .split_once(&format!(r#"<IMETHODRESPONSE NAME="{name}">"#))
        .unwrap_or_else(|| panic!("{}", body(&response)))
        .1;
    inner.split_once("</IMETHODRESPONSE>").unwrap().0.to_string()
}

fn method(server: &CimXml<String>, target: &str, name: &str, parameters: &str) -> String {
    let kind = if target.starts_with("<CLASSNAME") { "LOCALCLASSPATH" } else { "LOCALINSTANCEPATH" };
    let call = format!(r#"<METHODCALL NAME="{name}"><{kind}>{SPACE}{target}</{kind}>{parameters}</METHODCALL>"#);
    let response = send(server, "ann", &[("CIMOperation", "MethodCall")], &message(&call), NOW);
    let inner = body(&response)
        .split_once(&format!(r#"<METHODRESPONSE NAME="{name}">"#))
        .unwrap_or_else(|| panic!("{}", body(&response)))
        .1;
    inner.split_once("</METHODRESPONSE>").unwrap().0.to_string()
}

fn parameter(name: &str, value: &str) -> String {
    format!(r#"<IPARAMVALUE NAME="{name}">{value}</IPARAMVALUE>"#)
}

fn text(name: &str, value: &str) -> String {
    parameter(name, &format!("<VALUE>{value}</VALUE>"))
}

fn class(name: &str) -> String {
    parameter("ClassName", &format!(r#"<CLASSNAME NAME="{name}"/>"#))
}

fn error(answer: &str) -> u32 {
    let code = answer.strip_prefix(r#"<ERROR CODE=""#).unwrap_or_else(|| panic!("{answer}"));
    code.split('"').next().unwrap().parse().unwrap()
}

#[test]
fn an_answer_has_the_form_that_readers_expect() {
    let server = server();
    let list = r#"<VALUE.ARRAY><VALUE>slot</VALUE><VALUE>Tags</VALUE><VALUE>Notes</VALUE></VALUE.ARRAY>"#;
    let call = format!(
        r#"<IMETHODCALL NAME="getINSTANCE">{SPACE}{}{}</IMETHODCALL>"#,
        parameter("InstanceName", LAMP),
        parameter("PropertyList", list)
    );
    let headers = [("cimoperation", "methodcall"), ("CIMMETHOD", "GetInstance"), ("CIMObject", "root%2Ftoy")];
    let response = send(&server, "ann", &headers, &message(&call), NOW);
    assert_eq!(
        body(&response),
        concat!(
            r#"<?xml version="1.0" encoding="utf-8"?><CIM CIMVERSION="2.0" DTDVERSION="2.0"><MESSAGE ID="42" PROTOCOLVERSION="1.0">"#,
            r#"<SIMPLERSP><IMETHODRESPONSE NAME="getINSTANCE"><IRETURNVALUE><INSTANCE CLASSNAME="Toy_Device">"#,
            r#"<PROPERTY NAME="Notes" TYPE="string"></PROPERTY><PROPERTY NAME="Slot" TYPE="uint16"><VALUE>1</VALUE></PROPERTY>"#,
            r#"<PROPERTY.ARRAY NAME="Tags" TYPE="string"><VALUE.ARRAY><VALUE>a</VALUE><VALUE></VALUE><VALUE>&lt;b&gt;</VALUE></VALUE.ARRAY></PROPERTY.ARRAY>"#,
            r#"</INSTANCE></IRETURNVALUE></IMETHODRESPONSE></SIMPLERSP></MESSAGE></CIM>"#
        )
    );
    let headers =
        |name: &str| response.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
    assert_eq!(headers("Content-Type"), Some("application/xml; charset=\"utf-8\""));
    assert_eq!(headers("CIMOperation"), Some("MethodResponse"));
}

#[test]
fn requests_that_cannot_be_answered_get_a_status_and_a_word() {
    let server = server();
    let call = format!(r#"<IMETHODCALL NAME="EnumerateInstances">{SPACE}{}</IMETHODCALL>"#, class("Toy_Box"));
    let good = message(&call);
    let operation = ("CIMOperation", "MethodCall");
    let refused = |headers: &[(&str, &str)], text: &str| {
        let response = send(&server, "ann", headers, text, NOW);
        let word = response.headers.iter().find(|(name, _)| *name == "CIMError").map(|(_, value)| value.clone());
        (response.status, word.unwrap_or_default())
    };
    let is = |status: u16, word: &str| (status, word.to_string());
    assert_eq!(refused(&[operation], &good), is(200, ""));
    assert_eq!(refused(&[], &good), is(400, "unsupported-operation"));
    assert_eq!(refused(&[operation, ("CIMMethod", "GetInstance")], &good), is(400, "header-mismatch"));
    assert_eq!(refused(&[operation, ("CIMObject", "root/other")], &good), is(400, "header-mismatch"));
    assert_eq!(refused(&[operation, ("CIMProtocolVersion", "2.0")], &good), is(501, "unsupported-protocol-version"));
    assert_eq!(refused(&[operation, ("CIMBatch", "CIMBatch")], &good), is(501, "multiple-requests-unsupported"));
    assert_eq!(refused(&[operation, ("Content-Type", "text/plain")], &good), is(415, "request-not-valid"));
    let changed = |from: &str, to: &str| refused(&[operation], &good.replace(from, to));
    assert_eq!(changed("CIMVERSION=\"2.0\"", "CIMVERSION=\"3.0\""), is(501, "unsupported-cim-version"));
    assert_eq!(changed("DTDVERSION=\"2.0\"", "DTDVERSION=\"1.0\""), is(501, "unsupported-dtd-version"));
    assert_eq!(changed("DTDVERSION=\"2.0\"", "DTDVERSION=\"2.9\""), is(200, ""));
    assert_eq!(changed("PROTOCOLVERSION=\"1.0\"", "PROTOCOLVERSION=\"2.0\""), is(501, "unsupported-protocol-version"));
    assert_eq!(changed("SIMPLEREQ", "MULTIREQ"), is(501, "multiple-requests-unsupported"));
    assert_eq!(changed("SIMPLEREQ", "SIMPLEEXPREQ"), is(400, "unsupported-operation"));
    assert_eq!(changed("</CIM>", ""), is(400, "request-not-well-formed"));
    assert_eq!(changed("<CIM ", "<!DOCTYPE CIM><CIM "), is(400, "request-not-valid"));
    assert_eq!(changed("IMETHODCALL", "CALL"), is(400, "request-not-valid"));
    assert_eq!(changed("<CLASSNAME NAME=\"Toy_Box\"/>", "<CLASS.NAME/>"), is(400, "request-not-valid"));
    assert_eq!(changed("42", &"4".repeat(2 << 20)), is(413, "request-not-valid"));
    let get = HttpRequest { method: "GET", headers: &[operation], body: b"" };
    assert_eq!(block_on(server.handle(get, &"ann".into(), NOW)).status, 405);
}

#[test]
fn the_other_way_to_post_is_understood() {
    let server = server();
    let call = format!(r#"<IMETHODCALL NAME="EnumerateInstances">{SPACE}{}</IMETHODCALL>"#, class("Toy_Box"));
    let text = message(&call);
    let man = ("Man", "http://www.dmtf.org/cim/mapping/http/v1.0 ; ns=73");
    let status = |headers: &[(&str, &str)]| {
        let request = HttpRequest { method: "M-POST", headers, body: text.as_bytes() };
        block_on(server.handle(request, &"ann".into(), NOW)).status
    };
    assert_eq!(status(&[man, ("73-CIMOperation", "MethodCall"), ("73-CIMMethod", "EnumerateInstances")]), 200);
    assert_eq!(status(&[man, ("73-CIMOperation", "MethodCall"), ("73-CIMMethod", "GetClass")]), 400);
    assert_eq!(status(&[man, ("CIMOperation", "MethodCall")]), 400);
    assert_eq!(status(&[("73-CIMOperation", "MethodCall")]), 501);
}

#[test]
fn wrong_parameters_are_named_and_nothing_happens() {
    let server = server();
    let code = |name: &str, parameters: &str| error(&operation(&server, name, parameters));
    assert_eq!(code("EnumerateInstances", ""), 4);
    assert_eq!(code("EnumerateInstances", &(class("Toy_Box") + &text("Colour", "red"))), 4);
    assert_eq!(code("EnumerateInstances", &(class("Toy_Box") + &class("Toy_Box"))), 4);
    assert_eq!(code("EnumerateInstances", &(class("Toy_Box") + &text("DeepInheritance", "perhaps"))), 4);
    assert_eq!(code("EnumerateInstances", &class("Toy_X")), 5);
    assert_eq!(code("GetClass", &class("Toy_X")), 6);
    assert_eq!(code("EnumerateClassNames", &class("Toy_X")), 5);
    assert_eq!(code("GetInstance", &parameter("InstanceName", &LAMP.replace(">1<", ">9<"))), 6);
    assert_eq!(code("GetInstance", &parameter("InstanceName", &LAMP.replace(">1<", ">x<"))), 4);
    assert_eq!(code("GetInstance", &parameter("InstanceName", r#"<CLASSNAME NAME="Toy_Device"/>"#)), 4);
    assert_eq!(code("CreateClass", &parameter("NewClass", r#"<CLASS NAME="A"></CLASS>"#)), 7);
    assert_eq!(
        code("SetQualifier", &parameter("QualifierDeclaration", r#"<QUALIFIER.DECLARATION NAME="A" TYPE="string"/>"#)),
        7
    );
    assert_eq!(code("Frobnicate", ""), 7);
    assert_eq!(code("ExecQuery", &(text("QueryLanguage", "SQL") + &text("Query", "x"))), 14);
    assert_eq!(code("ExecQuery", &(text("QueryLanguage", "WQL") + &text("Query", "x"))), 15);
    assert_eq!(code("GetQualifier", &text("QualifierName", "Nice")), 6);
    let instance = |property: &str| {
        parameter(
            "ModifiedInstance",
            &format!(
                r#"<VALUE.NAMEDINSTANCE>{LAMP}<INSTANCE CLASSNAME="Toy_Device">{property}</INSTANCE></VALUE.NAMEDINSTANCE>"#
            ),
        )
    };
    let property =
        |name: &str, value: &str| format!(r#"<PROPERTY NAME="{name}" TYPE="uint16"><VALUE>{value}</VALUE></PROPERTY>"#);
    assert_eq!(code("ModifyInstance", &instance(&property("State", "70000"))), 13);
    assert_eq!(code("ModifyInstance", &instance(&property("X", "1"))), 12);
    assert_eq!(code("ModifyInstance", &instance(&property("Slot", "2"))), 4);
    // One that returns nothing answers with nothing at all.
    assert_eq!(operation(&server, "ModifyInstance", &instance(&property("State", "1"))), "");
    let elsewhere =
        format!(r#"<IMETHODCALL NAME="GetClass">{}{}</IMETHODCALL>"#, SPACE.replace("toy", "x"), class("Toy_X"));
    let response = send(&server, "ann", &[("CIMOperation", "MethodCall")], &message(&elsewhere), NOW);
    assert!(body(&response).contains(r#"<ERROR CODE="3""#));
}

#[test]
fn an_empty_list_of_properties_shows_none_and_no_list_shows_all() {
    let server = server();
    let get = |more: &str| operation(&server, "GetInstance", &(parameter("InstanceName", SERVICE) + more));
    assert!(get("").contains(r#"NAME="Enabled" TYPE="boolean"><VALUE>TRUE</VALUE>"#));
    assert_eq!(
        get(&parameter("PropertyList", "<VALUE.ARRAY/>")),
        r#"<IRETURNVALUE><INSTANCE CLASSNAME="Toy_Service"></INSTANCE></IRETURNVALUE>"#
    );
    assert!(get(r#"<IPARAMVALUE NAME="PropertyList"/>"#).contains("Enabled"));
    let shallow = operation(&server, "EnumerateInstances", &(class("Toy_Element") + &text("DeepInheritance", "false")));
    assert!(shallow.contains("Caption") && !shallow.contains("Balance"));
}

#[test]
fn an_enumeration_is_fetched_piece_by_piece_by_whoever_opened_it() {
    let server = server();
    let opened = operation(&server, "OpenEnumerateInstances", &class("Toy_Device"));
    assert!(opened.starts_with("<IRETURNVALUE></IRETURNVALUE>") && opened.contains("<VALUE>FALSE</VALUE>"), "{opened}");
    let number = opened.rsplit_once("</VALUE></PARAMVALUE>").unwrap().0.rsplit_once('>').unwrap().1.to_string();
    let pull = |caller: &str, now: Duration, name: &str, count: &str| {
        let parameters = text("EnumerationContext", &number) + &text("MaxObjectCount", count);
        operation_at(&server, caller, now, name, &parameters)
    };
    assert_eq!(error(&pull("bob", NOW, "PullInstancesWithPath", "1")), 21);
    assert_eq!(error(&pull("ann", NOW, "PullInstancePaths", "1")), 21);
    assert_eq!(
        operation(&server, "EnumerationCount", &text("EnumerationContext", &number)),
        "<IRETURNVALUE><VALUE>3</VALUE></IRETURNVALUE>"
    );
    let piece = pull("ann", NOW, "PullInstancesWithPath", "2");
    assert_eq!(piece.matches("<VALUE.INSTANCEWITHPATH>").count(), 2);
    assert!(piece.contains("<HOST>toyhost</HOST>") && piece.contains("<VALUE>FALSE</VALUE>"));
    let piece = pull("ann", NOW, "PullInstancesWithPath", "2");
    assert_eq!(piece.matches("<VALUE.INSTANCEWITHPATH>").count(), 1);
    assert!(piece.ends_with(
        r#"<VALUE>TRUE</VALUE></PARAMVALUE><PARAMVALUE NAME="EnumerationContext" PARAMTYPE="string"></PARAMVALUE>"#
    ));
    assert_eq!(error(&pull("ann", NOW, "PullInstancesWithPath", "2")), 21);
    // One that nobody comes for is gone, and so is one that was closed.
    let opened = operation(
        &server,
        "OpenEnumerateInstancePaths",
        &(class("Toy_Device") + &text("OperationTimeout", "5") + &text("MaxObjectCount", "1")),
    );
    let number = opened.rsplit_once("</VALUE></PARAMVALUE>").unwrap().0.rsplit_once('>').unwrap().1;
    let context = text("EnumerationContext", number);
    let late = NOW + Duration::from_secs(5);
    assert_eq!(error(&operation_at(&server, "ann", late, "CloseEnumeration", &context)), 21);
    assert_eq!(operation(&server, "CloseEnumeration", &context), "");
    assert_eq!(error(&operation(&server, "CloseEnumeration", &context)), 21);
}

#[test]
fn an_enumeration_can_be_filtered_and_its_limits_are_held() {
    let server = server();
    let open = |more: &str| {
        operation(&server, "OpenEnumerateInstances", &(class("Toy_Device") + &text("MaxObjectCount", "9") + more))
    };
    let filter = |language: &str, query: &str| text("FilterQueryLanguage", language) + &text("FilterQuery", query);
    let found = open(&filter("DMTF:FQL", "Slot > 1 AND Caption = 'motor'"));
    assert_eq!(found.matches("<VALUE.INSTANCEWITHPATH>").count(), 1);
    assert_eq!(error(&open(&filter("DMTF:CQL", "SELECT * FROM Toy_Device"))), 14);
    assert_eq!(error(&open(&filter("SQL", "x"))), 14);
    assert_eq!(error(&open(&filter("DMTF:FQL", "Slot >"))), 15);
    assert_eq!(error(&open(&text("FilterQuery", "Slot > 1"))), 4);
    assert_eq!(error(&open(&text("OperationTimeout", "0"))), 22);
    assert_eq!(error(&open(&text("OperationTimeout", "3601"))), 22);
    assert_eq!(error(&open(&text("ContinueOnError", "TRUE"))), 26);
    assert_eq!(error(&open(&text("OperationTimeout", "-1"))), 4);
    let many = text("MaxObjectCount", "0");
    for _ in 0..crate::broker::CONTEXTS_OF_ONE_MAX {
        operation(&server, "OpenEnumerateInstances", &(class("Toy_Device") + &many));
    }
    assert_eq!(error(&operation(&server, "OpenEnumerateInstances", &(class("Toy_Device") + &many))), 27);
}

#[test]
fn methods_are_called_as_clients_call_them() {
    let server = server();
    let value = |name: &str, cim_type: &str, value: &str| {
        format!(r#"<PARAMVALUE NAME="{name}" PARAMTYPE="{cim_type}"><VALUE>{value}</VALUE></PARAMVALUE>"#)
    };
    let untyped = |name: &str, value: &str| format!(r#"<PARAMVALUE NAME="{name}"><VALUE>{value}</VALUE></PARAMVALUE>"#);
    assert_eq!(
        method(&server, LAMP, "Reset", &value("Level", "uint16", "3")),
        r#"<RETURNVALUE PARAMTYPE="uint32"><VALUE>4096</VALUE></RETURNVALUE><PARAMVALUE NAME="Was" PARAMTYPE="uint16"><VALUE>3</VALUE></PARAMVALUE>"#
    );
    assert!(method(&server, LAMP, "Reset", &untyped("level", " 0x3 ")).contains("<VALUE>3</VALUE></PARAMVALUE>"));
    assert_eq!(
        method(&server, LAMP, "Reset", r#"<PARAMVALUE NAME="Level"/>"#),
        r#"<RETURNVALUE PARAMTYPE="uint32"><VALUE>4096</VALUE></RETURNVALUE>"#
    );
    assert_eq!(error(&method(&server, LAMP, "Reset", &value("Level", "uint32", "3"))), 13);
    assert_eq!(error(&method(&server, LAMP, "Reset", &untyped("Level", "x"))), 13);
    assert_eq!(error(&method(&server, LAMP, "Reset", &untyped("Was", "1"))), 4);
    assert_eq!(error(&method(&server, LAMP, "Sing", "")), 17);
    assert_eq!(error(&method(&server, &LAMP.replace(">1<", ">9<"), "Reset", "")), 6);
    assert_eq!(error(&method(&server, r#"<CLASSNAME NAME="Toy_X"/>"#, "Ping", "")), 6);
    assert_eq!(error(&method(&server, r#"<CLASSNAME NAME="Toy_Service"/>"#, "Rest", "")), 4);
    assert!(
        method(&server, r#"<CLASSNAME NAME="Toy_Service"/>"#, "Ping", &untyped("Text", "&lt;ä&gt;"))
            .contains("<VALUE>&lt;ä&gt;</VALUE>")
    );
    // Scripts write numbers for booleans.
    let echo = method(&server, SERVICE, "Echo", &(value("Truth", "uint8", "1") + &value("Letter", "char16", "ß")));
    assert!(
        echo.contains(r#"NAME="Truth" PARAMTYPE="boolean"><VALUE>TRUE</VALUE>"#) && echo.contains("<VALUE>ß</VALUE>"),
        "{echo}"
    );
    assert_eq!(error(&method(&server, SERVICE, "Echo", &value("Truth", "uint8", "2"))), 13);
}

#[test]
fn embedded_instances_and_references_come_in_every_form() {
    let server = server();
    let part = r#"&lt;INSTANCE CLASSNAME="Toy_Part"&gt;&lt;PROPERTY NAME="Size" TYPE="uint8"&gt;&lt;VALUE&gt;5&lt;/VALUE&gt;&lt;/PROPERTY&gt;&lt;/INSTANCE&gt;"#;
    let understood = r#"<PARAMVALUE NAME="Part" PARAMTYPE="string" EmbeddedObject="instance"><VALUE>&lt;INSTANCE CLASSNAME=&quot;Toy_Part&quot;&gt;&lt;PROPERTY NAME=&quot;Size&quot; TYPE=&quot;uint8&quot;&gt;&lt;VALUE&gt;5&lt;/VALUE&gt;"#;
    for attributes in [
        r#" PARAMTYPE="string""#,
        r#" PARAMTYPE="string" EmbeddedObject="instance""#,
        r#" EMBEDDEDOBJECT="object""#,
        "",
    ] {
        let sent = format!(r#"<PARAMVALUE NAME="Part"{attributes}><VALUE>{part}</VALUE></PARAMVALUE>"#);
        let answer = method(&server, SERVICE, "Echo", &sent);
        assert!(answer.contains(understood), "{attributes}: {answer}");
    }
    let mof = r#"<PARAMVALUE NAME="Part"><VALUE>instance of Toy_Part { Size = 5; };</VALUE></PARAMVALUE>"#;
    assert!(method(&server, SERVICE, "Echo", mof).contains(understood));
    let array = format!(
        r#"<PARAMVALUE NAME="Parts"><VALUE.ARRAY><VALUE>{part}</VALUE><VALUE>{part}</VALUE></VALUE.ARRAY></PARAMVALUE>"#
    );
    assert_eq!(method(&server, SERVICE, "Echo", &array).matches("Toy_Part").count(), 2);
    assert_eq!(
        error(&method(&server, SERVICE, "Echo", r#"<PARAMVALUE NAME="Part"><VALUE>x</VALUE></PARAMVALUE>"#)),
        13
    );
    // A plain string stays one, whatever it holds.
    let settings = format!(
        r#"<PARAMVALUE NAME="Settings" PARAMTYPE="string" EmbeddedObject="instance"><VALUE>{part}</VALUE></PARAMVALUE>"#
    );
    let answer = method(&server, SERVICE, "Import", &settings);
    assert!(answer.contains(r#"NAME="Understood" PARAMTYPE="string"><VALUE>&lt;INSTANCE"#), "{answer}");
    assert!(answer.contains(r#"NAME="Device" PARAMTYPE="reference"><VALUE.REFERENCE><LOCALINSTANCEPATH><LOCALNAMESPACEPATH><NAMESPACE NAME="root">"#), "{answer}");
    let reference = |inner: &str| {
        format!(
            r#"<PARAMVALUE NAME="Device" PARAMTYPE="reference"><VALUE.REFERENCE>{inner}</VALUE.REFERENCE></PARAMVALUE>"#
        )
    };
    let local = format!("<LOCALINSTANCEPATH>{SPACE}{LAMP}</LOCALINSTANCEPATH>");
    // As one client cuts the namespace in two.
    let cut = format!(
        r#"<INSTANCEPATH><NAMESPACEPATH><HOST>root</HOST><LOCALNAMESPACEPATH><NAMESPACE NAME="toy"/></LOCALNAMESPACEPATH></NAMESPACEPATH>{LAMP}</INSTANCEPATH>"#
    );
    let key = r#"<KEYBINDING NAME="BoxName"><KEYVALUE VALUETYPE="string">red</KEYVALUE></KEYBINDING><KEYBINDING NAME="Slot"><KEYVALUE VALUETYPE="numeric">1</KEYVALUE></KEYBINDING>"#;
    for sent in [LAMP, &local, &cut] {
        let answer = method(&server, SERVICE, "Echo", &reference(sent));
        assert!(answer.contains(r#"<NAMESPACE NAME="toy">"#) && answer.contains(key), "{answer}");
    }
    let texts = [
        r#"root/toy:Toy_Device.Slot=1,BoxName="red""#,
        r"instance of Toy_Device { Slot = 1; BoxName = &quot;red&quot;; };",
    ];
    for sent in texts {
        let answer = method(
            &server,
            SERVICE,
            "Echo",
            &format!(r#"<PARAMVALUE NAME="Device"><VALUE>{sent}</VALUE></PARAMVALUE>"#),
        );
        assert!(answer.contains(key), "{answer}");
    }
}

#[test]
fn the_server_can_be_run_by_any_runtime() {
    fn assert_send<T: Send>(value: T) -> T {
        value
    }
    let server = server();
    let request = HttpRequest { method: "GET", headers: &[], body: b"" };
    let caller = "ann".to_string();
    assert_eq!(block_on(assert_send(server.handle(request, &caller, NOW))).status, 405);
}
