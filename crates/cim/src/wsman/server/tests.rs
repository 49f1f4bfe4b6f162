use futures::executor::block_on;

use super::*;
use crate::toy::{NAMESPACE, NOW, broker};
use crate::wsman::ANONYMOUS;

const WMI: &str = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/toy/";
const DMTF: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/";
const LAMP: &str = r#"<w:SelectorSet><w:Selector Name="BoxName">red</w:Selector><w:Selector Name="slot">1</w:Selector></w:SelectorSet>"#;

fn server() -> WsMan<String> {
    let settings =
        Settings { vendor: "Toymakers".into(), version: "1.2".into(), default_namespace: NAMESPACE.into(), seed: 7 };
    WsMan::new(Arc::new(broker()), settings)
}

/// An envelope with the headers that every request has, and more.
fn envelope(action: &str, uri: &str, more: &str, body: &str) -> String {
    format!(
        r#"<s:Envelope xmlns:s="{}" xmlns:a="{}" xmlns:w="{}" xmlns:n="{}" xmlns:m="{}" xmlns:xsi="{}" xmlns:cim="{}"><s:Header>
        <a:To s:mustUnderstand="true">HTTP://windows-host:5985/wsman</a:To><w:ResourceURI s:mustUnderstand="true">
        {uri}</w:ResourceURI><a:ReplyTo><a:Address s:mustUnderstand="true">{ANONYMOUS}</a:Address></a:ReplyTo>
        <a:Action s:mustUnderstand="true">{action}</a:Action><a:MessageID>uuid:1</a:MessageID>{more}</s:Header><s:Body>{body}</s:Body></s:Envelope>"#,
        ns::S,
        ns::A,
        ns::W,
        ns::N,
        ns::MS,
        ns::XSI,
        ns::CIM
    )
}

fn post(server: &WsMan<String>, caller: &str, now: Duration, text: &str) -> (u16, String) {
    let headers = [("Content-Type", "application/soap+xml;charset=UTF-8")];
    let request = HttpRequest { method: "POST", headers: &headers, body: text.as_bytes() };
    let response = block_on(server.handle(request, &caller.to_string(), now));
    (response.status, String::from_utf8(response.body).unwrap())
}

fn ask(server: &WsMan<String>, text: &str) -> String {
    let (status, body) = post(server, "ann", NOW, text);
    assert_eq!(status, 200, "{body}");
    body
}

/// Subcode and detail of a fault.
fn fault(server: &WsMan<String>, text: &str) -> (String, String) {
    let (status, body) = post(server, "ann", NOW, text);
    assert_eq!(status, 500, "{body}");
    let between = |from: &str, to: &str| {
        body.rsplit_once(from).map_or("", |(_, rest)| rest.split(to).next().unwrap()).to_string()
    };
    (between("<s:Value>", "</s:Value>"), between("/wsman/faultDetail/", "<"))
}

fn is(subcode: &str, detail: &str) -> (String, String) {
    (subcode.to_string(), detail.to_string())
}

fn get(uri: &str, more: &str) -> String {
    envelope("http://schemas.xmlsoap.org/ws/2004/09/transfer/Get", uri, more, "")
}

fn put(more: &str, body: &str) -> String {
    envelope(
        "http://schemas.xmlsoap.org/ws/2004/09/transfer/Put",
        &format!("{WMI}Toy_Device"),
        &format!("{LAMP}{more}"),
        body,
    )
}

fn enumerate(uri: &str, more: &str, body: &str) -> String {
    let action = "http://schemas.xmlsoap.org/ws/2004/09/enumeration/Enumerate";
    envelope(action, uri, more, &format!("<n:Enumerate>{body}</n:Enumerate>"))
}

fn pull(context: &str, more: &str, body: &str) -> String {
    let action = "http://schemas.xmlsoap.org/ws/2004/09/enumeration/Pull";
    let body = format!("<n:Pull><n:EnumerationContext>{context}</n:EnumerationContext>{body}</n:Pull>");
    envelope(action, "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/cimv2/*", more, &body)
}

fn invoke(class: &str, method: &str, more: &str, body: &str) -> String {
    envelope(&format!("{WMI}{class}/{method}"), &format!("{WMI}{class}"), more, body)
}

fn context(body: &str) -> String {
    let rest = body.rsplit_once("<n:EnumerationContext>").unwrap_or_else(|| panic!("{body}")).1;
    rest.split('<').next().unwrap().to_string()
}

#[test]
fn an_answer_has_the_prefixes_that_readers_search_for() {
    let server = server();
    let body = ask(&server, &get(&format!("{WMI}Toy_Part"), "").replace("Toy_Part", "Toy_Service"));
    let header = format!(
        "<s:Header><a:Action>http://schemas.xmlsoap.org/ws/2004/09/transfer/GetResponse</a:Action><a:MessageID>uuid:{}</a:MessageID>\
         <a:To>{ANONYMOUS}</a:To><a:RelatesTo>uuid:1</a:RelatesTo></s:Header>",
        body.split("uuid:").nth(1).unwrap().split('<').next().unwrap()
    );
    assert!(body.contains(&header), "{body}");
    let instance = format!(
        r#"<s:Body><p:Toy_Service xmlns:p="{WMI}Toy_Service" xmlns:xsi="{}" xmlns:cim="{}" xsi:type="p:Toy_Service_Type"><p:Caption>toy</p:Caption><p:Notes xsi:nil="true"></p:Notes><p:SystemName>toys</p:SystemName><p:Name>keeper</p:Name><p:Enabled>true</p:Enabled></p:Toy_Service></s:Body>"#,
        ns::XSI,
        ns::CIM
    );
    assert!(body.contains(&instance), "{body}");
    assert!(!body.contains("/>"));
    let again = ask(&server, &get(&format!("{WMI}Toy_Service"), ""));
    assert_ne!(again.split("uuid:").nth(1), body.split("uuid:").nth(1));
}

#[test]
fn what_callers_tolerate_is_tolerated() {
    let server = server();
    let text = get(&format!("{WMI}Toy_Device"), LAMP);
    let works = |text: &str| assert!(ask(&server, text).contains("<p:Caption>lamp</p:Caption>"));
    works(&text);
    works(&text.replace("HTTP://windows-host:5985/wsman", "/wsman"));
    works(&text.replace("uuid:1", "17"));
    works(&text.replace("s:mustUnderstand", "mustUnderstand"));
    works(&text.replace("slot\">1<", "slot\">\n1 <").replace(">red<", ">RED<"));
    works(
        &text
            .replace("xmlns:s=", "xmlns:soap=")
            .replace("<s:", "<soap:")
            .replace("</s:", "</soap:")
            .replace("s:must", "soap:must"),
    );
    works(&text.replace("wmi/root/toy", r"wmi/root\TOY"));
    let options = r#"<w:OptionSet s:mustUnderstand="true"><w:Option Name="__MI_CallbackRegistration" Type="xs:int">16</w:Option>
        <w:Option Name="wmiarray:__MI_OPERATIONOPTIONS_CHANNELVALUE">0</w:Option><w:Option Name="msftwinrm:UsePreciseArrays">true</w:Option></w:OptionSet>
        <w:OperationTimeout>P60.000S</w:OperationTimeout><m:OperationID s:mustUnderstand="false">uuid:2</m:OperationID><m:SequenceId>1</m:SequenceId>
        <w:Locale xml:lang="en" s:mustUnderstand="false"/><x xmlns="urn:strange">y</x><w:OptionSet/>"#;
    works(&get(&format!("{WMI}Toy_Device"), &format!("{LAMP}{options}")));
    // All, some and no keys, and the namespace in a selector, in the URI or nowhere.
    let namespace = r#"<w:SelectorSet><w:Selector Name="__cimnamespace">root\toy</w:Selector></w:SelectorSet>"#;
    assert!(ask(&server, &get(&format!("{DMTF}Toy_Service"), namespace)).contains("keeper"));
    assert!(ask(&server, &get(&format!("{DMTF}Toy_Service"), "")).contains("keeper"));
    let some = r#"<w:SelectorSet><w:Selector Name="Name">keeper</w:Selector></w:SelectorSet>"#;
    assert!(ask(&server, &get(&format!("{WMI}Toy_Service"), some)).contains("keeper"));
    // A superclass will do as long as it is clear who is meant.
    let motor = LAMP.replace(">1<", ">3<");
    assert!(ask(&server, &get(&format!("{WMI}Toy_Device"), &motor)).contains("<p:Toy_Motor "));
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let headers = [("Content-Type", "application/soap+xml;charset=UTF-16")];
    let request = HttpRequest { method: "POST", headers: &headers, body: &utf16 };
    assert_eq!(block_on(server.handle(request, &"ann".to_string(), NOW)).status, 200);
}

#[test]
fn what_must_not_be_ignored_is_refused_with_the_right_code() {
    let server = server();
    let text = get(&format!("{WMI}Toy_Device"), LAMP);
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        fault(&server, &text.replace(from, to))
    };
    let more = |more: &str| fault(&server, &get(&format!("{WMI}Toy_Device"), &format!("{LAMP}{more}")));
    assert_eq!(refused("<a:MessageID>uuid:1</a:MessageID>", ""), is("a:MessageInformationHeaderRequired", ""));
    assert_eq!(
        refused("<a:MessageID>uuid:1</a:MessageID>", "<a:MessageID/>"),
        is("a:InvalidMessageInformationHeader", "")
    );
    assert_eq!(refused("a:ReplyTo", "a:From"), is("a:MessageInformationHeaderRequired", ""));
    assert_eq!(refused("role/anonymous", "role/nobody"), is("w:UnsupportedFeature", "AddressingMode"));
    assert_eq!(refused("transfer/Get", "transfer/Fetch"), is("a:ActionNotSupported", "ActionMismatch"));
    assert_eq!(
        refused("2004/09/transfer/Get", "2004/08/eventing/Subscribe"),
        is("a:ActionNotSupported", "ActionMismatch")
    );
    assert_eq!(refused("</s:Body>", ""), is("w:SchemaValidationError", ""));
    assert_eq!(refused("<s:Envelope ", "<!DOCTYPE x><s:Envelope "), is("w:SchemaValidationError", ""));
    assert_eq!(refused("2003/05/soap-envelope", "2001/06/soap-envelope"), is("w:SchemaValidationError", ""));
    assert_eq!(refused("Toy_Device", "Toy_X"), is("a:DestinationUnreachable", "InvalidResourceURI"));
    assert_eq!(refused("root/toy", "root/x"), is("a:DestinationUnreachable", "InvalidNamespace"));
    assert_eq!(refused("wbem/wsman/1/wmi", "x"), is("a:DestinationUnreachable", "InvalidResourceURI"));
    assert_eq!(refused(">1<", ">9<"), is("a:DestinationUnreachable", "InvalidResourceURI"));
    assert_eq!(refused("\"slot\"", "\"Caption\""), is("w:InvalidSelectors", ""));
    assert_eq!(refused("\"slot\"", "\"boxname\""), is("w:InvalidSelectors", "DuplicateSelectors"));
    assert_eq!(
        refused("</w:SelectorSet>", "<w:Selector Name=\"__cimnamespace\">root/x</w:Selector></w:SelectorSet>"),
        is("a:DestinationUnreachable", "InvalidResourceURI")
    );
    assert_eq!(more("<w:MaxEnvelopeSize>8191</w:MaxEnvelopeSize>"), is("w:EncodingLimit", "MinimumEnvelopeLimit"));
    assert_eq!(more(r#"<w:Locale xml:lang="de" s:mustUnderstand="true"/>"#), is("w:UnsupportedFeature", "Locale"));
    assert_eq!(more("<w:OperationTimeout>soon</w:OperationTimeout>"), is("a:InvalidMessageInformationHeader", ""));
    assert_eq!(
        more(r#"<w:OptionSet><w:Option Name="x" MustComply="true"/></w:OptionSet>"#),
        is("w:InvalidOptions", "NotSupported")
    );
    assert_eq!(more("<w:FragmentTransfer>Caption</w:FragmentTransfer>"), is("a:InvalidMessageInformationHeader", ""));
    let strange = get(&format!("{WMI}Toy_Device"), r#"<x:y xmlns:x="urn:x" s:mustUnderstand="1"/>"#);
    let (_, body) = post(&server, "ann", NOW, &strange);
    assert!(
        body.contains(r#"<s:NotUnderstood xmlns:u="urn:x" qname="u:y">"#)
            && body.contains("<s:Value>s:MustUnderstand</s:Value></s:Code>"),
        "{body}"
    );
    assert!(body.contains("<a:Action>http://schemas.xmlsoap.org/ws/2004/08/addressing/fault</a:Action>"));
    let (_, body) = post(&server, "ann", NOW, &text.replace("root/toy", "root/x"));
    assert!(body.contains(r#"<p:MSFT_WmiError xmlns:p="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/MSFT_WmiError"><p:error_Code>2150858778</p:error_Code>"#));
    let http = |method: &str, headers: &[(&str, &str)], body: &[u8]| {
        block_on(server.handle(HttpRequest { method, headers, body }, &"ann".to_string(), NOW)).status
    };
    assert_eq!(http("GET", &[], b""), 405);
    assert_eq!(http("M-POST", &[], b""), 501);
    assert_eq!(http("POST", &[], &vec![b' '; 2 << 20]), 413);
    assert_eq!(http("POST", &[("Content-Type", "text/xml")], text.as_bytes()), 415);
    assert_eq!(http("POST", &[("Content-Type", "application/soap+xml;charset=koi8-r")], text.as_bytes()), 415);
    assert_eq!(http("POST", &[], text.as_bytes()), 200);
    assert_eq!(http("POST", &[("SOAPAction", "\"urn:other\"")], text.as_bytes()), 500);
}

#[test]
fn who_asks_is_told_what_the_server_is() {
    let server = server();
    let text = format!(
        r#"<s:Envelope xmlns:s="{}" xmlns:i="{}"><s:Header/><s:Body><i:Identify/></s:Body></s:Envelope>"#,
        ns::S,
        ns::ID
    );
    let body = ask(&server, &text);
    assert!(body.contains(
        "<wsmid:ProductVendor>Toymakers</wsmid:ProductVendor><wsmid:ProductVersion>1.2</wsmid:ProductVersion>"
    ));
    assert!(ask(&server, &text.replace("/identity/", "/identify/")).contains("IdentifyResponse"));
    let unknown = |headers: &[(&str, &str)], text: &str| {
        let request = HttpRequest { method: "POST", headers, body: text.as_bytes() };
        server.handle_unauthenticated(request).map(|response| String::from_utf8(response.body).unwrap())
    };
    let told = unknown(&[("WSMANIDENTIFY", "unauthenticated")], &text).unwrap();
    assert!(told.contains("ProtocolVersion") && !told.contains("Toymakers"));
    assert_eq!(unknown(&[], &text), None);
    assert_eq!(unknown(&[("WSMANIDENTIFY", "unauthenticated")], &get(&format!("{WMI}Toy_Service"), "")), None);
}

#[test]
fn parts_of_instances_are_read_and_written() {
    let server = server();
    let fragment =
        |expression: &str| format!(r#"<w:FragmentTransfer s:mustUnderstand="true">{expression}</w:FragmentTransfer>"#);
    let read =
        |expression: &str| ask(&server, &get(&format!("{WMI}Toy_Device"), &format!("{LAMP}{}", fragment(expression))));
    let body = read("Caption");
    assert!(
        body.contains(r#"<w:FragmentTransfer s:mustUnderstand="true">Caption</w:FragmentTransfer></s:Header>"#),
        "{body}"
    );
    assert!(body.contains("><p:Caption>lamp</p:Caption></w:XmlFragment>"));
    assert!(read("p:Samples[2]").contains("><p:Samples>2</p:Samples></w:XmlFragment>"));
    assert!(read("Caption/text()").contains(">lamp</w:XmlFragment>"));
    for bad in ["/Caption", "Nothing", "Samples[9]", "Samples[0]", "Samples[x]", "a b"] {
        let text = get(&format!("{WMI}Toy_Device"), &format!("{LAMP}{}", fragment(bad)));
        assert_eq!(fault(&server, &text).0, "w:CannotProcessFilter", "{bad}");
    }
    let write =
        |expression: &str, body: &str| put(&fragment(expression), &format!("<w:XmlFragment>{body}</w:XmlFragment>"));
    assert!(ask(&server, &write("Notes", "<Notes>x</Notes>")).contains("<p:Notes>x</p:Notes></w:XmlFragment>"));
    ask(&server, &write("Samples[2]", "<Samples>22</Samples>"));
    assert!(
        ask(&server, &get(&format!("{WMI}Toy_Device"), LAMP))
            .contains("<p:Samples>1</p:Samples><p:Samples>22</p:Samples><p:Samples>4294967295</p:Samples>")
    );
    assert_eq!(
        fault(&server, &write("Notes", "<Caption>x</Caption>")),
        is("x:InvalidRepresentation", "InvalidFragment")
    );
    assert_eq!(
        fault(&server, &put(&fragment("Notes"), "<Notes>x</Notes>")),
        is("x:InvalidRepresentation", "InvalidFragment")
    );
}

#[test]
fn an_instance_can_be_put_back_as_it_came() {
    let server = server();
    let whole = ask(&server, &get(&format!("{WMI}Toy_Device"), LAMP));
    let body = whole.split_once("<s:Body>").unwrap().1.split_once("</s:Body>").unwrap().0;
    let back = ask(&server, &put("", &body.replace("<p:Caption>lamp", "<p:Caption>lantern")));
    assert!(back.contains("<p:Caption>lantern</p:Caption>"));
    assert_eq!(
        back.split_once("<s:Body>").unwrap().1.replace("lantern", "lamp"),
        whole.split_once("<s:Body>").unwrap().1
    );
    // Only what Windows says was modified, whatever else the body says.
    let listed =
        r#"<w:OptionSet><w:Option Name="wmiarray:__MIInstanceModifiedPropertiesList">Notes</w:Option></w:OptionSet>"#;
    let body =
        r#"<Toy_Device xmlns="urn:x"><Notes xsi:type="cim:cimString">n</Notes><Caption>c</Caption></Toy_Device>"#;
    let back = ask(&server, &put(listed, body));
    assert!(back.contains("<p:Notes>n</p:Notes>") && back.contains("<p:Caption>lantern</p:Caption>"));
    let refused = |body: &str| fault(&server, &put("", body));
    assert_eq!(refused("<Toy_Device><X>1</X></Toy_Device>"), is("x:InvalidRepresentation", "InvalidValues"));
    assert_eq!(refused("<Toy_Device><State>x</State></Toy_Device>"), is("x:InvalidRepresentation", "InvalidValues"));
    assert_eq!(refused("<Toy_Device><Slot>2</Slot></Toy_Device>"), is("x:InvalidRepresentation", "InvalidValues"));
    assert_eq!(refused("<Toy_Box/>"), is("x:InvalidRepresentation", "InvalidValues"));
    assert_eq!(refused(""), is("x:InvalidRepresentation", ""));
    let text = put("", "<Toy_Device><Notes>guest</Notes></Toy_Device>");
    let (_, body) = post(&server, "guest", NOW, &text);
    assert!(body.contains("w:AccessDenied"));
}

#[test]
fn items_come_one_by_one_unless_more_are_asked_for() {
    let server = server();
    let uri = format!("{WMI}Toy_Device");
    let first = ask(&server, &enumerate(&uri, "<w:RequestTotalItemsCountEstimate/>", ""));
    assert!(first.contains("<w:TotalItemsCountEstimate>3</w:TotalItemsCountEstimate>") && !first.contains("Items>"));
    let number = context(&first);
    assert_eq!(fault(&server, &pull("999", "", "")).0, "n:InvalidEnumerationContext");
    assert_eq!(fault(&server, &pull("x", "", "")).0, "n:InvalidEnumerationContext");
    assert!(post(&server, "bob", NOW, &pull(&number, "", "")).1.contains("n:InvalidEnumerationContext"));
    let piece = ask(&server, &pull(&number, "", ""));
    assert_eq!((piece.matches("<p:Toy_Device ").count(), context(&piece)), (1, number.clone()));
    let piece = ask(&server, &pull(&number, "", "<n:MaxElements>20</n:MaxElements>"));
    assert_eq!(piece.matches("<p:Toy_").count(), 2);
    assert!(piece.contains("<n:EndOfSequence></n:EndOfSequence>") && !piece.contains("EnumerationContext"));
    assert_eq!(fault(&server, &pull(&number, "", "")).0, "n:InvalidEnumerationContext");
    let optimized = |most: &str| {
        let body = format!("<w:OptimizeEnumeration/><w:MaxElements>{most}</w:MaxElements>");
        ask(&server, &enumerate(&uri, "", &body))
    };
    let all = optimized("3");
    assert!(
        all.contains("<n:EnumerationContext></n:EnumerationContext><w:Items>")
            && all.contains("</w:Items><w:EndOfSequence>")
    );
    let some = optimized("2");
    assert!(some.matches("<p:Toy_").count() == 2 && !some.contains("EndOfSequence") && !context(&some).is_empty());
    // Nothing to find: the client comes for it and is told so, or is told at once.
    let nothing = r#"<w:Filter Dialect="http://microsoft.com/wbem/wsman/1/WQL">select * from Toy_Device where Slot = 77</w:Filter>"#;
    let number = context(&ask(&server, &enumerate(&uri, "", nothing)));
    assert!(ask(&server, &pull(&number, "", "")).contains("<n:Items></n:Items><n:EndOfSequence>"));
    assert!(
        ask(&server, &enumerate(&uri, "", &format!("<w:OptimizeEnumeration/>{nothing}")))
            .contains("<w:Items></w:Items><w:EndOfSequence>")
    );
    // Given up, renewed, forgotten.
    let number = context(&ask(&server, &enumerate(&uri, "", "<n:Expires>PT10S</n:Expires>")));
    let other = |verb: &str, more: &str| {
        let action = format!("http://schemas.xmlsoap.org/ws/2004/09/enumeration/{verb}");
        envelope(
            &action,
            &uri,
            "",
            &format!("<n:{verb}><n:EnumerationContext>{number}</n:EnumerationContext>{more}</n:{verb}>"),
        )
    };
    let later = NOW + Duration::from_secs(9);
    assert!(
        post(&server, "ann", later, &other("Renew", "<n:Expires>PT60S</n:Expires>"))
            .1
            .contains("<n:Expires>PT60S</n:Expires>")
    );
    assert_eq!(post(&server, "ann", later + Duration::from_secs(59), &other("Release", "")).0, 200);
    assert_eq!(post(&server, "ann", later, &other("Release", "")).0, 500);
    let number = context(&ask(&server, &enumerate(&uri, "", "<n:Expires>PT10S</n:Expires>")));
    let late = NOW + Duration::from_secs(10);
    assert!(post(&server, "ann", late, &pull(&number, "", "")).1.contains("n:InvalidEnumerationContext"));
}

#[test]
fn no_answer_is_larger_than_the_client_wants() {
    let server = server();
    let uri = format!("{WMI}Toy_Device");
    let notes = "n".repeat(4_000);
    for slot in ["1", "2"] {
        let text = put("", &format!("<Toy_Device><Notes>{notes}</Notes></Toy_Device>"))
            .replace("slot\">1<", &format!("slot\">{slot}<"));
        ask(&server, &text);
    }
    let small = "<w:MaxEnvelopeSize>8192</w:MaxEnvelopeSize>";
    let (mut number, mut found, mut pieces) = (context(&ask(&server, &enumerate(&uri, small, ""))), 0, 0);
    while !number.is_empty() {
        let piece = ask(&server, &pull(&number, small, "<n:MaxElements>10</n:MaxElements>"));
        assert!(piece.len() <= 8_192);
        found += piece.matches("<p:Notes>").count() + piece.matches("<p:Notes xsi").count();
        pieces += 1;
        number = if piece.contains("EndOfSequence") { String::new() } else { context(&piece) };
    }
    assert_eq!((found, pieces), (3, 2));
    ask(&server, &put("", &format!("<Toy_Device><Notes>{notes}{notes}</Notes></Toy_Device>")));
    assert_eq!(fault(&server, &get(&uri, &format!("{LAMP}{small}"))), is("w:EncodingLimit", "MaxEnvelopeSize"));
    let number = context(&ask(&server, &enumerate(&uri, small, "")));
    assert_eq!(fault(&server, &pull(&number, small, "")), is("w:EncodingLimit", "MaxEnvelopeSize"));
    // It is not lost: with a larger envelope it comes.
    assert!(ask(&server, &pull(&number, "", "")).contains(&notes));
}

#[test]
fn filters_and_modes_are_those_of_the_standards() {
    let server = server();
    let items = |uri: &str, more: &str, body: &str| {
        let body = format!("<w:OptimizeEnumeration/><w:MaxElements>50</w:MaxElements>{body}");
        ask(&server, &enumerate(uri, more, &body))
    };
    let wql = |query: &str| {
        format!(r#"<n:Filter Dialect="http://schemas.microsoft.com/wbem/wsman/1/WQL">{query}</n:Filter>"#)
    };
    let all = format!("{WMI}*");
    assert_eq!(items(&all, "", &wql("select * from Toy_Device")).matches("<p:Toy_").count(), 3);
    let projected = items(&all, "", &wql("select Slot,Tags from Toy_Device where Slot=1"));
    assert!(
        projected.contains("><Slot>1</Slot><Tags>a</Tags>") && projected.contains("<w:XmlFragment "),
        "{projected}"
    );
    let projected = items(&format!("{DMTF}*"), "", &wql("select Slot from Toy_Device where Slot=1"));
    assert!(projected.contains("><p:Slot>1</p:Slot></p:Toy_Device>"), "{projected}");
    let associated = wql("associators of {Toy_Device.BoxName=\"red\",Slot=1} where resultclass = Toy_Box");
    assert!(items(&all, "", &associated).contains("<p:Name>red</p:Name>"));
    let selectors = |name: &str, value: &str| {
        let dialect = "http://schemas.dmtf.org/wbem/wsman/1/wsman/SelectorFilter";
        format!(
            r#"<w:Filter Dialect="{dialect}"><w:SelectorSet><w:Selector Name="{name}">{value}</w:Selector></w:SelectorSet></w:Filter>"#
        )
    };
    assert_eq!(items(&format!("{WMI}Toy_Device"), "", &selectors("Caption", "MOTOR")).matches("<p:Toy_").count(), 1);
    let epr = format!(
        "<a:Address>{ANONYMOUS}</a:Address><a:ReferenceParameters><w:ResourceURI>{WMI}Toy_Device</w:ResourceURI>{LAMP}</a:ReferenceParameters>"
    );
    let association = |kind: &str, more: &str| {
        format!(
            r#"<w:Filter Dialect="http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter"><b:{kind} xmlns:b="http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd"><b:Object>{epr}</b:Object>{more}</b:{kind}></w:Filter>"#
        )
    };
    let found = items("http://schemas.dmtf.org/wbem/wscim/1/*", "", &association("AssociatedInstances", ""));
    assert_eq!(found.matches(&format!("xmlns:p=\"{DMTF}Toy_")).count(), 3, "{found}");
    let narrow = "<b:AssociationClassName>Toy_Holds</b:AssociationClassName><b:Role>Held</b:Role><b:ResultRole>Holder</b:ResultRole>\
        <b:IncludeResultProperty>Name</b:IncludeResultProperty>";
    assert!(
        items(&all, "", &association("AssociatedInstances", narrow)).contains("\"><p:Name>red</p:Name></p:Toy_Box>")
    );
    assert_eq!(
        items(&all, "", &association("AssociationInstances", "<b:ResultClassName>Toy_Needs</b:ResultClassName>"))
            .matches("<p:Toy_Needs ")
            .count(),
        1
    );
    let mode =
        |mode: &str| items(&format!("{WMI}Toy_Motor"), "", &format!("<w:EnumerationMode>{mode}</w:EnumerationMode>"));
    let inline = format!(
        r#"<a:EndpointReference><a:Address xmlns:a="{}">{ANONYMOUS}</a:Address><a:ReferenceParameters xmlns:a="{}"><w:ResourceURI xmlns:w="{}">{WMI}Toy_Motor</w:ResourceURI>"#,
        ns::A,
        ns::A,
        ns::W
    );
    assert!(mode("EnumerateEPR").contains(&inline), "{}", mode("EnumerateEPR"));
    let both = mode("EnumerateObjectAndEPR");
    assert!(both.contains("<w:Item><p:Toy_Motor ") && both.contains("</p:Toy_Motor><a:EndpointReference>"));
    let keys = items(&format!("{WMI}Toy_Holds"), "", "<w:EnumerationMode>EnumerateEPR</w:EnumerationMode>");
    assert!(keys.contains(r#"<w:Selector Name="Holder"><a:EndpointReference>"#), "{keys}");
    let refused = |uri: &str, body: &str| fault(&server, &enumerate(uri, "", body));
    assert_eq!(refused(&all, ""), is("a:DestinationUnreachable", "InvalidResourceURI"));
    assert_eq!(refused(&all, &wql("select")).0, "n:CannotProcessFilter");
    assert_eq!(refused(&all, &wql("select * from Toy_X")), is("a:DestinationUnreachable", "InvalidResourceURI"));
    assert_eq!(refused(&all, &wql("associators of {Toy_Box='red'} where ClassDefsOnly")).0, "n:CannotProcessFilter");
    assert_eq!(refused(&all, &wql("x").replace("WQL", "SQL")).0, "n:FilterDialectRequestedUnavailable");
    assert_eq!(refused(&all, "<w:Filter>/a/b</w:Filter>").0, "n:FilterDialectRequestedUnavailable");
    assert_eq!(refused(&all, &selectors("a", "it's")).0, "n:CannotProcessFilter");
    assert_eq!(refused(&all, &format!("{}{}", wql("a"), wql("b"))).0, "n:CannotProcessFilter");
    assert_eq!(
        refused(&format!("{WMI}Toy_Box"), "<w:EnumerationMode>Everything</w:EnumerationMode>"),
        is("w:UnsupportedFeature", "EnumerationMode")
    );
    assert_eq!(refused(&format!("{WMI}Toy_Box"), "<n:Expires>never</n:Expires>").0, "n:InvalidExpirationTime");
    assert_eq!(refused(&format!("{WMI}Toy_Box"), "<w:MaxElements>0</w:MaxElements>").0, "w:SchemaValidationError");
}

#[test]
fn methods_are_invoked_as_clients_do_it() {
    let server = server();
    let output = |text: &str| {
        let body = ask(&server, text);
        body.split_once("<s:Body>").unwrap().1.split_once("</s:Body>").unwrap().0.to_string()
    };
    let reset = output(&invoke(
        "Toy_Device",
        "Reset",
        LAMP,
        &format!(r#"<p:Reset_INPUT xmlns:p="{WMI}Toy_Device"><p:Level>3</p:Level></p:Reset_INPUT>"#),
    ));
    assert!(reset.starts_with(&format!(r#"<p:Reset_OUTPUT xmlns:p="{WMI}Toy_Device""#)), "{reset}");
    assert!(reset.ends_with("><p:Was>3</p:Was><p:ReturnValue>4096</p:ReturnValue></p:Reset_OUTPUT>"));
    // In a wrong namespace, with another prefix, or not there at all.
    assert!(
        output(&invoke(
            "Toy_Device",
            "Reset",
            LAMP,
            "<w:Reset_INPUT><x:Level xmlns:x='urn:x'> 0x3 </x:Level></w:Reset_INPUT>"
        ))
        .contains("<p:Was>3")
    );
    assert!(output(&invoke("Toy_Service", "Rest", "", "")).contains("<p:ReturnValue>0</p:ReturnValue>"));
    let echo = |inputs: &str| output(&invoke("Toy_Service", "Echo", "", &format!("<Echo_INPUT>{inputs}</Echo_INPUT>")));
    let address = format!(
        "<a:Address>{ANONYMOUS}</a:Address><a:ReferenceParameters><w:ResourceURI>{DMTF}Toy_Device</w:ResourceURI>\
        <w:SelectorSet><w:Selector Name=\"__cimnamespace\">root/toy</w:Selector><w:Selector Name=\"Slot\">1</w:Selector><w:Selector Name=\"BoxName\">red</w:Selector></w:SelectorSet></a:ReferenceParameters>"
    );
    let lamp = format!(
        r#"<w:ResourceURI>{WMI}Toy_Device</w:ResourceURI><w:SelectorSet><w:Selector Name="BoxName">red</w:Selector><w:Selector Name="Slot">1</w:Selector>"#
    );
    assert!(echo(&format!("<Device>{address}</Device>")).contains(&lamp));
    assert!(echo(&format!("<Device><a:EndpointReference>{address}</a:EndpointReference></Device>")).contains(&lamp));
    assert!(echo("<Device>root/toy:Toy_Device.Slot=1,BoxName='red'</Device>").contains(&lamp));
    assert!(
        echo("<Device xsi:type=\"q:Toy_Device_Type\"><BoxName>red</BoxName><Slot>1</Slot></Device>").contains(&lamp)
    );
    let part = r#"<p:Part xmlns:q="http://schemas.microsoft.com/wbem/wsman/1/wmi/root/toy/Toy_Part" xsi:type="q:Toy_Part_Type"><q:Size>5</q:Size></p:Part>"#;
    assert!(echo("<Part><Size>5</Size></Part>").contains(part));
    assert!(echo("<Part xsi:type=\"q:Toy_Part_Type\"><Size>5</Size></Part>").contains(part));
    assert!(echo("<Part><q:x xmlns:q='urn:x' xsi:type=\"q:Toy_Part_Type\"><Size>5</Size></q:x></Part>").contains(part));
    assert!(echo("<Part>instance of Toy_Part { Size = 5; };</Part>").contains(part));
    assert!(echo("<Part><![CDATA[<INSTANCE CLASSNAME=\"Toy_Part\"><PROPERTY NAME=\"Size\" TYPE=\"uint8\"><VALUE>5</VALUE></PROPERTY></INSTANCE>]]></Part>").contains(part));
    assert_eq!(echo("<Parts><Size>1</Size></Parts><Parts><Size>2</Size></Parts>").matches("<q:Size>").count(), 2);
    for moment in [
        "2030-01-01T00:00:00Z",
        "20300101000000.000000+000",
        "<cim:Datetime>2030-01-01T00:00:00Z</cim:Datetime>",
        "<cim:CIM_DateTime>20300101000000.000000+000</cim:CIM_DateTime>",
    ] {
        assert!(
            echo(&format!("<Moment>{moment}</Moment>"))
                .contains("<p:Moment><cim:Datetime>2030-01-01T00:00:00Z</cim:Datetime></p:Moment>")
        );
    }
    assert!(echo("<Moment>P0DT0H5M0S</Moment>").contains("<cim:Interval>P0DT0H5M0S</cim:Interval>"));
    assert!(
        echo("<Moment>20300101******.******+000</Moment>")
            .contains("<cim:CIM_DateTime>20300101******.******+000</cim:CIM_DateTime>")
    );
    assert!(echo("<Text xsi:nil=\"true\"/><Truth>1</Truth><Numbers>7</Numbers>").contains("<p:Truth>true</p:Truth>"));
    assert_eq!(echo("").matches("<p:").count(), 2);
    let refused = |class: &str, method: &str, body: &str| fault(&server, &invoke(class, method, "", body));
    assert_eq!(refused("Toy_Service", "Sing", ""), is("a:ActionNotSupported", "ActionMismatch"));
    assert_eq!(refused("Toy_Service", "Rest", "<a><X>1</X></a>"), is("w:InvalidParameter", "InvalidName"));
    assert_eq!(refused("Toy_Service", "Echo", "<a><Small>256</Small></a>"), is("w:InvalidParameter", "TypeMismatch"));
    assert_eq!(
        refused("Toy_Service", "Echo", "<a><Small>1</Small><Small>2</Small></a>"),
        is("w:InvalidParameter", "TypeMismatch")
    );
    assert_eq!(refused("Toy_Device", "Reset", ""), is("w:InvalidSelectors", ""));
    assert_eq!(refused("Toy_Service", "Fail", "<a><Code>0</Code></a>"), is("w:InternalError", ""));
    assert_eq!(refused("Toy_X", "Rest", ""), is("a:DestinationUnreachable", "InvalidResourceURI"));
    assert!(refused("Toy_Service", "Echo", "<a><Text><b><c/></b></Text></a>").0.starts_with("w:"));
}

#[test]
fn classes_and_settings_can_be_read() {
    let server = server();
    let metadata = "http://schemas.dmtf.org/wbem/cim-xml/2/cim-schema/2/*";
    let selectors = |class: &str| {
        format!(
            r#"<w:SelectorSet><w:Selector Name="__cimnamespace">root/toy</w:Selector><w:Selector Name="ClassName">{class}</w:Selector></w:SelectorSet>"#
        )
    };
    let class = ask(&server, &get(metadata, &selectors("Toy_Motor")));
    assert!(
        class.contains(r#"<s:Body><CLASS NAME="Toy_Motor" SUPERCLASS="Toy_Device">"#)
            && class.contains("NAME=\"Slot\"")
    );
    let options = r#"<w:OptionSet><w:Option Name="IncludeInheritedElements">false</w:Option><w:Option Name="IncludeQualifiers">false</w:Option></w:OptionSet>"#;
    let class = ask(&server, &get(metadata, &(selectors("Toy_Motor") + options)));
    assert!(class.contains("NAME=\"Speed\"") && !class.contains("NAME=\"Slot\"") && !class.contains("QUALIFIER"));
    assert_eq!(fault(&server, &get(metadata, &selectors("Toy_X"))).0, "a:DestinationUnreachable");
    assert_eq!(fault(&server, &get(metadata, "")).0, "w:InvalidSelectors");
    let config = ask(&server, &get("http://schemas.microsoft.com/wbem/wsman/1/config", ""));
    assert!(config.contains("<cfg:MaxEnvelopeSizekb>500</cfg:MaxEnvelopeSizekb>"));
}

#[test]
fn a_caller_cannot_keep_all_enumerations_open() {
    let server = server();
    let open = enumerate(&format!("{WMI}Toy_Device"), "", "");
    for _ in 0..crate::broker::CONTEXTS_OF_ONE_MAX {
        ask(&server, &open);
    }
    assert_eq!(fault(&server, &open), is("w:QuotaLimit", ""));
    assert_eq!(post(&server, "bob", NOW, &open).0, 200);
}

#[test]
fn the_server_can_be_run_by_any_runtime() {
    fn assert_send<T: Send>(value: T) -> T {
        value
    }
    let (server, caller) = (server(), "ann".to_string());
    let request = HttpRequest { method: "GET", headers: &[], body: b"" };
    assert_eq!(block_on(assert_send(server.handle(request, &caller, NOW))).status, 405);
}
