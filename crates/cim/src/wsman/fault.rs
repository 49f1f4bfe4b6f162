//! Faults: what went wrong, in the codes that clients look for.

use super::ns;
use crate::status::{Status, StatusCode};
use crate::xml::XmlWriter;

const DETAILS: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman/faultDetail/";
const WMI_ERROR: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/MSFT_WmiError";
/// Microsoft's number for a namespace that is not there; one client looks for it.
const WMI_INVALID_NAMESPACE: &str = "2150858778";

/// Whose mistake it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Sender,
    Receiver,
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    side: Side,
    /// Code with its prefix.
    pub subcode: &'static str,
    /// What comes behind the URI of details.
    pub detail: Option<&'static str>,
    /// For people.
    pub reason: String,
    /// Microsoft's number, where it is known.
    number: Option<&'static str>,
    /// A header that was not understood: its namespace and its name.
    pub not_understood: Option<Box<(String, String)>>,
    is_namespace: bool,
}

/// What was being done, which decides on what a wrong parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// `Get`, `Delete`, `Enumerate`
    Reading,
    /// `Put`, `Create`
    Writing,
    /// A method.
    Invoking,
}

impl Fault {
    fn new(side: Side, subcode: &'static str, detail: Option<&'static str>, reason: impl Into<String>) -> Self {
        let (number, not_understood) = (None, None);
        Fault { side, subcode, detail, reason: reason.into(), number, not_understood, is_namespace: false }
    }

    /// The client's mistake.
    pub fn sender(subcode: &'static str, detail: Option<&'static str>, reason: impl Into<String>) -> Self {
        Fault::new(Side::Sender, subcode, detail, reason)
    }

    /// Text that is no request.
    pub fn schema(reason: impl Into<String>) -> Self {
        Fault::sender("w:SchemaValidationError", None, reason)
    }

    /// Something that is not offered.
    pub fn unsupported(detail: &'static str) -> Self {
        Fault::sender("w:UnsupportedFeature", Some(detail), format!("{detail} is not supported"))
    }

    /// An action that nobody knows here.
    pub fn action(reason: impl Into<String>) -> Self {
        Fault::sender("a:ActionNotSupported", Some("ActionMismatch"), reason)
    }

    /// A resource that is not there.
    pub fn resource(reason: impl Into<String>) -> Self {
        let fault = Fault::sender("a:DestinationUnreachable", Some("InvalidResourceURI"), reason);
        Fault { number: Some("2150858752"), ..fault }
    }

    /// A header that must be understood and is not.
    pub fn not_understood(namespace: &str, name: &str) -> Self {
        let fault = Fault::sender("s:MustUnderstand", None, format!("header {name} is not understood"));
        Fault { not_understood: Some(Box::new((namespace.to_string(), name.to_string()))), ..fault }
    }

    /// Something that does not fit the envelope that the client wants.
    pub fn too_large() -> Self {
        Fault::new(Side::Sender, "w:EncodingLimit", Some("MaxEnvelopeSize"), "the answer does not fit the envelope")
    }

    /// A status as a fault.
    pub fn of(status: Status, doing: Doing) -> Self {
        use StatusCode as Code;
        let sender = |subcode, detail| Fault::new(Side::Sender, subcode, detail, status.message.clone());
        let receiver = |subcode, detail| Fault::new(Side::Receiver, subcode, detail, status.message.clone());
        match (status.code, doing) {
            (Code::AccessDenied, _) => Fault { number: Some("5"), ..sender("w:AccessDenied", None) },
            (Code::InvalidNamespace, _) => {
                let fault = sender("a:DestinationUnreachable", Some("InvalidNamespace"));
                Fault { number: Some(WMI_INVALID_NAMESPACE), is_namespace: true, ..fault }
            }
            (Code::InvalidParameter, Doing::Reading) => sender("w:InvalidSelectors", None),
            (Code::InvalidParameter | Code::NoSuchProperty | Code::TypeMismatch, Doing::Writing) => {
                sender("x:InvalidRepresentation", Some("InvalidValues"))
            }
            (Code::InvalidParameter, Doing::Invoking) => sender("w:InvalidParameter", Some("InvalidName")),
            (Code::TypeMismatch, Doing::Invoking) => sender("w:InvalidParameter", Some("TypeMismatch")),
            (Code::InvalidClass | Code::NotFound, _) => Fault::resource(status.message.clone()),
            (Code::NotSupported | Code::MethodNotAvailable | Code::MethodNotFound, _) => {
                sender("a:ActionNotSupported", Some("ActionMismatch"))
            }
            (Code::AlreadyExists, _) => sender("w:AlreadyExists", None),
            (Code::QueryLanguageNotSupported, _) => sender("n:FilterDialectRequestedUnavailable", None),
            (Code::InvalidQuery, _) => sender("n:CannotProcessFilter", None),
            (Code::InvalidEnumerationContext, _) => receiver("n:InvalidEnumerationContext", None),
            (Code::InvalidOperationTimeout, _) => receiver("w:TimedOut", None),
            (Code::FilteredEnumerationNotSupported, _) => sender("n:FilteringNotSupported", None),
            (Code::ServerLimitsExceeded, _) => sender("w:QuotaLimit", None),
            _ => receiver("w:InternalError", None),
        }
    }

    /// The action of the response.
    pub fn action_uri(&self) -> &'static str {
        match self.subcode.split(':').next() {
            Some("a" | "s") => "http://schemas.xmlsoap.org/ws/2004/08/addressing/fault",
            Some("n") => "http://schemas.xmlsoap.org/ws/2004/09/enumeration/fault",
            Some("x") => "http://schemas.xmlsoap.org/ws/2004/09/transfer/fault",
            Some("e") => "http://schemas.xmlsoap.org/ws/2004/08/eventing/fault",
            _ => "http://schemas.dmtf.org/wbem/wsman/1/wsman/fault",
        }
    }

    /// `s:Fault`
    pub fn write(&self, xml: &mut XmlWriter, machine: &str) {
        xml.element("s:Fault", &[], |xml| {
            xml.element("s:Code", &[], |xml| self.write_code(xml));
            xml.element("s:Reason", &[], |xml| xml.text_element("s:Text", &[("xml:lang", "en-US")], &self.reason));
            xml.element("s:Detail", &[], |xml| {
                if let Some(detail) = self.detail {
                    xml.text_element("w:FaultDetail", &[], &format!("{DETAILS}{detail}"));
                }
                if let Some(number) = self.number {
                    let attributes = [("xmlns:f", ns::F), ("Code", number), ("Machine", machine)];
                    xml.element("f:WSManFault", &attributes, |xml| xml.text_element("f:Message", &[], &self.reason));
                }
                if self.is_namespace {
                    xml.element("p:MSFT_WmiError", &[("xmlns:p", WMI_ERROR)], |xml| {
                        xml.text_element("p:error_Code", &[], WMI_INVALID_NAMESPACE);
                        xml.text_element("p:Message", &[], &self.reason);
                    });
                }
            });
        });
    }

    /// SOAP has a code of its own for headers that are not understood; everything else is a subcode.
    fn write_code(&self, xml: &mut XmlWriter) {
        if self.not_understood.is_some() {
            return xml.text_element("s:Value", &[], "s:MustUnderstand");
        }
        xml.text_element("s:Value", &[], if self.side == Side::Sender { "s:Sender" } else { "s:Receiver" });
        xml.element("s:Subcode", &[], |xml| xml.text_element("s:Value", &[], self.subcode));
    }
}
