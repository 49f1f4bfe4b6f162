//! Writes responses.

use super::message::BadRequest;
use crate::http::HttpResponse;
use crate::status::Status;
use crate::xml::XmlWriter;

const MEDIA_TYPE: &str = "application/xml; charset=\"utf-8\"";

/// What stands around an answer.
#[derive(Debug, Clone, Copy)]
pub enum Frame<'a> {
    /// Of an operation of that name.
    Intrinsic(&'a str),
    /// Of a method of that name.
    Extrinsic(&'a str),
}

/// A response whose answer is XML that was written before, or an error. The name is the one of the request, to the letter.
pub fn response(id: &str, frame: Frame<'_>, outcome: Result<String, Status>) -> HttpResponse {
    let (element, name) = match frame {
        Frame::Intrinsic(name) => ("IMETHODRESPONSE", name),
        Frame::Extrinsic(name) => ("METHODRESPONSE", name),
    };
    let mut xml = XmlWriter::document();
    xml.element("CIM", &[("CIMVERSION", "2.0"), ("DTDVERSION", "2.0")], |xml| {
        xml.element("MESSAGE", &[("ID", id), ("PROTOCOLVERSION", "1.0")], |xml| {
            xml.element("SIMPLERSP", &[], |xml| {
                xml.element(element, &[("NAME", name)], |xml| match &outcome {
                    Ok(answer) => xml.raw(answer),
                    Err(status) => error(xml, status),
                });
            });
        });
    });
    HttpResponse::text(200, MEDIA_TYPE, xml.finish()).with("CIMOperation", "MethodResponse")
}

fn error(xml: &mut XmlWriter, status: &Status) {
    let code = status.code.number().to_string();
    // The description is an attribute, in which a line break would not survive.
    let description = status.message.replace(['\r', '\n'], " ");
    xml.empty("ERROR", &[("CODE", &code), ("DESCRIPTION", &description)]);
}

/// A response to a request that cannot be answered.
pub fn bad_request(bad: &BadRequest) -> HttpResponse {
    HttpResponse::text(bad.status, "text/plain; charset=utf-8", bad.detail.clone()).with("CIMError", bad.error)
}
