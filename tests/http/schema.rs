//! As much of JSON Schema as `/openapi.json` uses. A keyword that is not known here fails the test that meets it.

use regex::Regex;
use serde_json::{Map, Value, json};

/// What a reference leads to.
pub fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
        None => value,
    }
}

/// A schema of the document's, by its name.
pub fn schema(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// Whether a value is what the schema says; if not, why.
pub fn validate(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let schema = resolve(document, schema).as_object().unwrap();
    schema.iter().try_for_each(|(keyword, wanted)| check(document, schema, (keyword, wanted), value))
}

fn check(
    document: &Value,
    schema: &Map<String, Value>,
    (keyword, wanted): (&str, &Value),
    value: &Value,
) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{value} is {what} {wanted}"));
    match keyword {
        "description" | "default" | "examples" | "format" | "contentEncoding" => {}
        "type" => {
            let one = std::slice::from_ref(wanted);
            let types = wanted.as_array().map_or(one, Vec::as_slice);
            if !types.iter().any(|name| is_a(value, name.as_str().unwrap())) {
                return wrong("no");
            }
        }
        "enum" if !wanted.as_array().unwrap().contains(value) => return wrong("not in"),
        "enum" => {}
        "minimum" if number(value).is_some_and(|found| found < number(wanted).unwrap()) => return wrong("less than"),
        "maximum" if number(value).is_some_and(|found| found > number(wanted).unwrap()) => return wrong("more than"),
        // The same for a number that is written as a string, or stands at its end.
        "x-minimum" if in_text(value).is_some_and(|found| found < number(wanted).unwrap()) => {
            return wrong("less than");
        }
        "x-maximum" if in_text(value).is_some_and(|found| found > number(wanted).unwrap()) => {
            return wrong("more than");
        }
        "maxLength" if chars(value).is_some_and(|found| found > wanted.as_u64().unwrap()) => {
            return wrong("longer than");
        }
        // What JSON Schema has no word for.
        "x-maxBytes" if value.as_str().is_some_and(|text| text.len() as u64 > wanted.as_u64().unwrap()) => {
            return wrong("of more bytes than");
        }
        "minItems" if items(value).is_some_and(|found| found < wanted.as_u64().unwrap()) => return wrong("fewer than"),
        "maxItems" if items(value).is_some_and(|found| found > wanted.as_u64().unwrap()) => return wrong("more than"),
        "minimum" | "maximum" | "x-minimum" | "x-maximum" | "maxLength" | "x-maxBytes" | "minItems" | "maxItems" => {}
        "pattern" => {
            let pattern = Regex::new(wanted.as_str().unwrap()).unwrap();
            if value.as_str().is_some_and(|text| !pattern.is_match(text)) {
                return wrong("not like");
            }
        }
        "required" => {
            let missing = |name: &&Value| value.is_object() && value.get(name.as_str().unwrap()).is_none();
            if let Some(name) = wanted.as_array().unwrap().iter().find(missing) {
                return Err(format!("{name} is missing"));
            }
        }
        "properties" => {
            for (name, schema) in wanted.as_object().unwrap() {
                if let Some(field) = value.get(name) {
                    validate(document, schema, field).map_err(|why| format!("{name}: {why}"))?;
                }
            }
        }
        "additionalProperties" => {
            let known = schema.get("properties").and_then(Value::as_object);
            let other = |name: &str| !known.is_some_and(|known| known.contains_key(name));
            for (name, field) in value.as_object().into_iter().flatten().filter(|(name, _)| other(name)) {
                if wanted == &json!(false) {
                    return Err(format!("{name} is not listed"));
                }
                validate(document, wanted, field).map_err(|why| format!("{name}: {why}"))?;
            }
        }
        "items" => {
            let mut items = value.as_array().into_iter().flatten();
            items.try_for_each(|item| validate(document, wanted, item))?;
        }
        "prefixItems" => {
            let mut items = value.as_array().into_iter().flatten().zip(wanted.as_array().unwrap());
            items.try_for_each(|(item, schema)| validate(document, schema, item))?;
        }
        "oneOf" => {
            let tried: Vec<_> = wanted.as_array().unwrap().iter().map(|one| validate(document, one, value)).collect();
            if tried.iter().filter(|tried| tried.is_ok()).count() != 1 {
                return Err(format!("not exactly one of {tried:?}"));
            }
        }
        "allOf" => wanted.as_array().unwrap().iter().try_for_each(|one| validate(document, one, value))?,
        "not" if validate(document, wanted, value).is_ok() => return wrong("what it must not be:"),
        "not" => {}
        other => panic!("schema keyword {other} is not checked"),
    }
    Ok(())
}

fn number(value: &Value) -> Option<i128> {
    value.as_i64().map(i128::from).or(value.as_u64().map(i128::from))
}

fn in_text(value: &Value) -> Option<i128> {
    value.as_str()?.rsplit(':').next()?.parse().ok()
}

fn chars(value: &Value) -> Option<u64> {
    Some(value.as_str()?.chars().count() as u64)
}

fn items(value: &Value) -> Option<u64> {
    Some(value.as_array()?.len() as u64)
}

fn is_a(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("type {other}"),
    }
}
