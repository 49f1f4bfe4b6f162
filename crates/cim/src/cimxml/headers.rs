//! Headers of a request: they repeat what the body says, and must not say otherwise.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::message::{BadRequest, Message, MessageCall};
use crate::http::HttpRequest;
use crate::name::Namespace;
use crate::path::ObjectPath;

/// The extension whose headers have a number in front when a request is sent with `M-POST`.
const EXTENSION: &str = "http://www.dmtf.org/cim/mapping/http/v1.0";

/// Headers of one request, wherever they are.
pub struct Headers<'a> {
    request: &'a HttpRequest<'a>,
    /// `NN-`, for `M-POST`.
    prefix: String,
}

impl<'a> Headers<'a> {
    /// Looks at the method and at what must be there before the body is.
    pub fn read(request: &'a HttpRequest<'a>) -> Result<Self, BadRequest> {
        let prefix = match request.method {
            "POST" => String::new(),
            "M-POST" => extension_prefix(request)
                .ok_or_else(|| BadRequest::new(501, "unsupported-operation", "unknown extension"))?,
            other => return Err(BadRequest::new(405, "unsupported-operation", format!("{other} is not for CIM"))),
        };
        let headers = Headers { request, prefix };
        if headers.get("CIMBatch").is_some() {
            return Err(BadRequest::new(501, "multiple-requests-unsupported", "one request at a time"));
        }
        if !headers.get("CIMOperation").is_some_and(|value| value.eq_ignore_ascii_case("MethodCall")) {
            return Err(BadRequest::new(400, "unsupported-operation", "CIMOperation is not MethodCall"));
        }
        match headers.get("CIMProtocolVersion") {
            Some(version) if version.split('.').next() != Some("1") => {
                Err(BadRequest::new(501, "unsupported-protocol-version", version))
            }
            _ => Ok(headers),
        }
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.request.header(&format!("{}{name}", self.prefix))
    }

    /// Fails when a header says something else than the body.
    pub fn check(&self, message: &Message) -> Result<(), BadRequest> {
        let name = match &message.call {
            MessageCall::Intrinsic { name, .. } | MessageCall::Extrinsic { name, .. } => name,
        };
        let mismatch =
            |header: &str| Err(BadRequest::new(400, "header-mismatch", format!("{header} is not what the body says")));
        if let Some(header) = self.get("CIMMethod")
            && !readings(header).iter().any(|reading| reading.eq_ignore_ascii_case(name))
        {
            return mismatch("CIMMethod");
        }
        if let Some(header) = self.get("CIMObject")
            && !readings(header).iter().any(|reading| names_object(reading, &message.call))
        {
            return mismatch("CIMObject");
        }
        Ok(())
    }
}

fn extension_prefix(request: &HttpRequest<'_>) -> Option<String> {
    let (uri, parameters) = request.header("Man")?.split_once(';')?;
    let number = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("ns="))?.trim();
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (uri.trim().trim_matches('"') == EXTENSION && is_number).then(|| format!("{number}-"))
}

/// What a header may mean: itself, itself without percent signs, or what an encoded word holds.
fn readings(header: &str) -> Vec<String> {
    let decoded = [percent_decoded(header), encoded_words(header)];
    std::iter::once(header.to_string()).chain(decoded.into_iter().flatten()).collect()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let code = (*first == b'%').then(|| behind.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()));
        match code {
            Some(hex) => {
                bytes.push(u8::from_str_radix(hex?, 16).ok()?);
                rest = &behind[2..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// `=?utf-8?b?…?=` (RFC 2047), once or several times with spaces between them.
fn encoded_words(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    for word in text.split_ascii_whitespace() {
        let inner = word.strip_prefix("=?")?.strip_suffix("?=")?;
        let mut parts = inner.splitn(3, '?');
        let (charset, encoding, content) = (parts.next()?, parts.next()?, parts.next()?);
        if !charset.eq_ignore_ascii_case("utf-8") {
            return None;
        }
        match encoding {
            "b" | "B" => bytes.extend(STANDARD.decode(content).ok()?),
            "q" | "Q" => {
                let with_percent = content.replace('%', "%25").replace('_', " ").replace('=', "%");
                bytes.extend(percent_decoded(&with_percent)?.into_bytes());
            }
            _ => return None,
        }
    }
    String::from_utf8(bytes).ok()
}

fn names_object(text: &str, call: &MessageCall) -> bool {
    match call {
        MessageCall::Intrinsic { namespace, .. } => {
            Namespace::parse(text.trim()).is_ok_and(|named| named == *namespace)
        }
        MessageCall::Extrinsic { target, .. } => ObjectPath::parse(text.trim()).is_ok_and(|path| path.matches(target)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_understood_in_every_encoding() {
        assert!(readings("root%2Ftoy%3AToy_Box.Name%3D%22%C3%A4%22").contains(&"root/toy:Toy_Box.Name=\"ä\"".into()));
        assert!(readings("=?utf-8?b?cm9vdC90b3k6w6Q=?=").contains(&"root/toy:ä".into()));
        assert!(readings("=?UTF-8?Q?root/toy:=C3=A4_=25?=").contains(&"root/toy:ä %".into()));
        assert_eq!(readings("100%"), ["100%"]);
        assert_eq!(readings("=?koi8-r?b?cm9v?="), ["=?koi8-r?b?cm9v?=", "=?koi8-r?b?cm9v?="]);
    }

    #[test]
    fn an_extension_must_be_the_one_we_speak() {
        let prefix = |man: &str| {
            let headers = [("Man", man)];
            extension_prefix(&HttpRequest { method: "M-POST", headers: &headers, body: b"" })
        };
        assert_eq!(prefix("http://www.dmtf.org/cim/mapping/http/v1.0; ns=42").as_deref(), Some("42-"));
        assert_eq!(prefix("http://www.dmtf.org/cim/mapping/http/v1.0; ns="), None);
        assert_eq!(prefix("http://example.org/; ns=42"), None);
    }
}
