//! What the kit needs to know of HTTP: a request's method, headers and body, and the same of a response. Sockets, connections,
//! credentials and chunks are for whoever uses the kit.

/// A request, its body whole and no longer chunked.
#[derive(Debug, Clone, Copy)]
pub struct HttpRequest<'a> {
    /// `POST`, as a rule.
    pub method: &'a str,
    /// Names and values.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
}

impl<'a> HttpRequest<'a> {
    /// The first header of that name, whatever the case.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The media type of the body, without parameters and in lower case.
    pub fn media_type(&self) -> Option<String> {
        let value = self.header("Content-Type")?;
        value.split(';').next().map(|media| media.trim().to_ascii_lowercase())
    }

    /// The encoding the body's type names.
    pub fn charset(&self) -> Option<String> {
        let parameters = self.header("Content-Type")?.split(';').skip(1);
        let mut named = parameters.filter_map(|parameter| parameter.split_once('='));
        let (_, charset) = named.find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))?;
        Some(charset.trim().trim_matches('"').to_ascii_lowercase())
    }
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status.
    pub status: u16,
    /// Names and values; the length is for whoever sends it.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// A response without a body.
    pub fn empty(status: u16) -> Self {
        HttpResponse { status, headers: Vec::new(), body: Vec::new() }
    }

    /// A response with a text of some type.
    pub fn text(status: u16, media_type: &str, body: String) -> Self {
        HttpResponse { status, headers: vec![("Content-Type", media_type.to_string())], body: body.into_bytes() }
    }

    /// The same response with one header more.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}
