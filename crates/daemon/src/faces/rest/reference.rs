//! The reference page of the API, made from its OpenAPI document.

use std::fmt::Write;

use serde_json::Value;

/// The page, as Markdown.
pub fn reference() -> String {
    let document: Value = serde_json::from_str(&super::document()).expect("the document is JSON");
    let mut page = String::from(HEAD);
    let tags = document["tags"].as_array().expect("the document has tags");
    for tag in tags {
        let name = text(&tag["name"]);
        let _ = write!(page, "\n## {}\n\n", text(&tag["description"]));
        page.push_str("| call | does | takes | gives |\n|---|---|---|---|\n");
        calls(&mut page, &document, name);
    }
    page.push_str("\n## Objects\n");
    let schemas = document["components"]["schemas"].as_object().expect("the document has schemas");
    for (name, schema) in schemas {
        object(&mut page, name, schema);
    }
    page
}

const HEAD: &str = "# REST\n\n\
<!-- made from the code; refresh with UNDERSTUDY_GOLDEN=write cargo test -p understudy-daemon golden -->\n\n\
The API is served on the daemon's unix socket (`understudy.sock` in the state directory), to root and the user the\n\
daemon runs as. `GET /api/v1/openapi.json` is the document this page is made from; `GET /metrics` is for Prometheus.\n\n\
```sh\ncurl --unix-socket /var/lib/understudy/understudy.sock http://localhost/api/v1/host\n```\n\n\
A call that changes something answers `return_value`: 0 when it is done, 4096 with a `job` that goes on with it (HTTP\n\
status 200 and 202). A call that is not carried out has changed nothing and answers an `Error` with a return code of\n\
the service:\n\n\
| code | name | HTTP status |\n|---|---|---|\n\
| 32768 | Failed | 500 |\n\
| 32769 | Access Denied | 403 |\n\
| 32770 | Not Supported | 501 |\n\
| 32771 | Status is unknown | 500 |\n\
| 32772 | Timeout | 504 |\n\
| 32773 | Invalid parameter | 400; 404 where the path of a GET names nothing |\n\
| 32774 | System is in use | 409 |\n\
| 32775 | Invalid state for this operation | 409 |\n\
| 32776 | Incorrect data type | 400 |\n\
| 32777 | System is not available | 503 |\n\
| 32778 | Out of memory | 429 |\n\
| 32779 | File not found | 422 |\n\n\
A request that does not reach the service at all (no such path, no JSON, too large) answers an `Error` with code 0.\n\
What is only known later (a peer that cannot be reached, a disk that fails) ends the job with such a code instead.\n\n\
`GET /api/v1/events` is a stream of server-sent events: `job` and `relationship` carry the object as it is now;\n\
`relationship-removed`, `vm`, `vm-removed`, `peer`, `peer-removed` name what changed; `lagged` says how many events a\n\
slow reader missed.\n";

fn calls(page: &mut String, document: &Value, tag: &str) {
    for (path, methods) in document["paths"].as_object().expect("the document has paths") {
        for (method, call) in methods.as_object().expect("a path has methods") {
            if !call["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == tag)) {
                continue;
            }
            let summary = line(&call["summary"]);
            let taken = schema_name(&call["requestBody"]["content"]["application/json"]["schema"]);
            let (call_text, queries) = (format!("`{} {path}`", method.to_uppercase()), queries(call));
            let taken: Vec<String> = taken.into_iter().chain(queries).collect();
            let _ = writeln!(page, "| {call_text} | {summary} | {} | {} |", taken.join(", "), given(call));
        }
    }
}

fn queries(call: &Value) -> Option<String> {
    let parameters = call["parameters"].as_array()?;
    let names: Vec<&str> = parameters.iter().filter(|p| p["in"] == "query").map(|p| text(&p["name"])).collect();
    (!names.is_empty()).then(|| names.iter().map(|n| format!("`?{n}=`")).collect::<Vec<_>>().join(" "))
}

fn given(call: &Value) -> String {
    let responses = call["responses"].as_object().expect("a call has responses");
    let good = responses.iter().find(|(status, _)| status.starts_with('2')).expect("a call has a good answer").1;
    let content = good["content"].as_object().and_then(|c| c.values().next());
    content.and_then(|c| schema_name(&c["schema"])).unwrap_or_default()
}

fn schema_name(schema: &Value) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next()?;
        return Some(format!("[{name}](#{})", name.to_lowercase()));
    }
    match schema["type"].as_str()? {
        "array" => Some(format!("list of {}", schema_name(&schema["items"])?)),
        other => Some(other.to_owned()),
    }
}

fn object(page: &mut String, name: &str, schema: &Value) {
    let _ = write!(page, "\n### {name}\n\n{}\n\n| field | is | |\n|---|---|---|\n", line(&schema["description"]));
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (field, value) in schema["properties"].as_object().into_iter().flatten() {
        let may_lack = if required.iter().any(|r| r == field) { "" } else { ", may be missing" };
        let _ = writeln!(page, "| `{field}` | {}{may_lack} | {} |", kind(value), line(&value["description"]));
    }
}

/// The type of a field, with null left to "may be missing".
fn kind(value: &Value) -> String {
    if let Some(name) = schema_name(value) {
        return name;
    }
    let alternatives = value["oneOf"].as_array().or(value["allOf"].as_array());
    if let Some(found) = alternatives.and_then(|all| all.iter().find_map(schema_name)) {
        return found;
    }
    let types = value["type"].as_array().into_iter().flatten();
    types.filter_map(Value::as_str).find(|t| *t != "null").unwrap_or("any").to_owned()
}

fn line(value: &Value) -> String {
    text(value).replace('\n', " ")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
