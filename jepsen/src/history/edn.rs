//! EDN, as far as histories need it: nil, booleans, integers, strings, keywords, vectors (and lists, which Clojure prints
//! for lazy sequences) and maps. No symbols, characters, floats, sets, tags or comments.
//!
//! Strict: anything else is an error with its column. Bounded: nesting is limited, and every value takes at least one byte of
//! input, so memory is at most a constant times the line. It knows nothing of operations; see [`super::codec`].

use std::fmt::{self, Write as _};

/// How deep values may nest. A history needs six.
pub const DEPTH_MAX: usize = 16;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edn {
    /// `nil`
    Nil,
    /// `true`, `false`
    Bool(bool),
    /// `-12`
    Int(i64),
    /// `"text"`
    Text(String),
    /// `:name`, without the colon.
    Keyword(String),
    /// `[1 2]` or `(1 2)`
    Vector(Vec<Edn>),
    /// `{:a 1}`, in the order of the text; no key twice.
    Map(Vec<(Edn, Edn)>),
}

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {what}")]
pub struct EdnError {
    /// Counted in bytes from 1.
    pub column: usize,
    /// In words.
    pub what: String,
}

/// Reads exactly one value that fills `text`, but for whitespace and commas.
pub fn parse(text: &str) -> Result<Edn, EdnError> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.skip_blank();
    match reader.peek() {
        None => Ok(value),
        Some(byte) => Err(reader.error(format!("{:?} after the end of the value", char::from(byte)))),
    }
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl Reader<'_> {
    fn error(&self, what: impl Into<String>) -> EdnError {
        EdnError { column: self.at + 1, what: what.into() }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_blank(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace() || byte == b',') {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Edn, EdnError> {
        if depth > DEPTH_MAX {
            return Err(self.error(format!("nested deeper than {DEPTH_MAX}")));
        }
        self.skip_blank();
        match self.peek() {
            None => Err(self.error("a value is missing")),
            Some(b'[') => Ok(Edn::Vector(self.sequence(b']', depth)?)),
            Some(b'(') => Ok(Edn::Vector(self.sequence(b')', depth)?)),
            Some(b'{') => self.map(depth),
            Some(b'"') => self.string(),
            Some(b':') => {
                self.at += 1;
                match self.word() {
                    "" => Err(self.error("a keyword has no name")),
                    name => Ok(Edn::Keyword(name.to_owned())),
                }
            }
            Some(_) => self.atom(),
        }
    }

    /// The letters up to the next delimiter; empty if there are none.
    fn word(&mut self) -> &str {
        let rest = &self.text[self.at..];
        let ends =
            |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']' | '(' | ')' | '{' | '}' | '"' | ':' | ';');
        let word = &rest[..rest.find(ends).unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    fn atom(&mut self) -> Result<Edn, EdnError> {
        let start = self.at;
        let found = match self.word() {
            "nil" => Ok(Edn::Nil),
            "true" => Ok(Edn::Bool(true)),
            "false" => Ok(Edn::Bool(false)),
            word if word.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
                word.parse().map(Edn::Int).map_err(|_| format!("{word:?} is no integer of 64 bits"))
            }
            "" => Err("no value begins here".to_owned()),
            word => Err(format!("{word:?} is neither nil, true, false, an integer, a string nor a keyword")),
        };
        found.map_err(|what| {
            self.at = start;
            self.error(what)
        })
    }

    fn sequence(&mut self, end: u8, depth: usize) -> Result<Vec<Edn>, EdnError> {
        self.at += 1;
        let mut values = Vec::new();
        loop {
            self.skip_blank();
            match self.peek() {
                None => return Err(self.error(format!("{:?} is missing", char::from(end)))),
                Some(byte) if byte == end => break,
                Some(_) => values.push(self.value(depth + 1)?),
            }
        }
        self.at += 1;
        Ok(values)
    }

    fn map(&mut self, depth: usize) -> Result<Edn, EdnError> {
        let start = self.at;
        let mut flat = self.sequence(b'}', depth)?.into_iter();
        let mut entries = Vec::with_capacity(flat.len() / 2);
        while let Some(key) = flat.next() {
            let Some(value) = flat.next() else {
                return Err(EdnError { column: start + 1, what: "a map has a key without a value".to_owned() });
            };
            entries.push((key, value));
        }
        let mut keys: Vec<String> = entries.iter().map(|(key, _)| key.to_string()).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(EdnError { column: start + 1, what: format!("a map has the key {} twice", pair[0]) }),
            None => Ok(Edn::Map(entries)),
        }
    }

    fn string(&mut self) -> Result<Edn, EdnError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(plain) = rest.find(['"', '\\']) else {
                return Err(self.error("a string does not end"));
            };
            text.push_str(&rest[..plain]);
            self.at += plain + 1;
            if rest.as_bytes()[plain] == b'"' {
                return Ok(Edn::Text(text));
            }
            text.push(self.escape()?);
        }
    }

    fn escape(&mut self) -> Result<char, EdnError> {
        let letter = self.peek();
        self.at += 1;
        match letter {
            Some(b'"') => Ok('"'),
            Some(b'\\') => Ok('\\'),
            Some(b'n') => Ok('\n'),
            Some(b't') => Ok('\t'),
            Some(b'r') => Ok('\r'),
            Some(b'u') => {
                let digits = self.text.get(self.at..self.at + 4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
                let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32);
                let letter = code.ok_or_else(|| self.error("\\u needs four hexadecimal digits of a character"))?;
                self.at += 4;
                Ok(letter)
            }
            _ => {
                self.at -= 1;
                Err(self.error("an escape that is none of \\\" \\\\ \\n \\t \\r \\uXXXX"))
            }
        }
    }
}

impl fmt::Display for Edn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Keyword(name) => write!(f, ":{name}"),
            Self::Text(text) => write_string(f, text),
            Self::Vector(values) => {
                f.write_char('[')?;
                for (at, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if at == 0 { "" } else { " " })?;
                }
                f.write_char(']')
            }
            Self::Map(entries) => {
                f.write_char('{')?;
                for (at, (key, value)) in entries.iter().enumerate() {
                    write!(f, "{}{key} {value}", if at == 0 { "" } else { ", " })?;
                }
                f.write_char('}')
            }
        }
    }
}

fn write_string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for letter in text.chars() {
        match letter {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            '\r' => f.write_str("\\r")?,
            control if control.is_control() => write!(f, "\\u{:04x}", u32::from(control))?,
            other => f.write_char(other)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values() -> impl Strategy<Value = Edn> {
        let leaf = prop_oneof![
            Just(Edn::Nil),
            any::<bool>().prop_map(Edn::Bool),
            any::<i64>().prop_map(Edn::Int),
            any::<String>().prop_map(Edn::Text),
            "[a-z][a-z0-9?*!-]{0,8}".prop_map(Edn::Keyword),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Edn::Vector),
                prop::collection::vec(inner, 0..5)
                    .prop_map(|values| Edn::Map((0..).map(Edn::Int).zip(values).collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in values()) {
            prop_assert_eq!(parse(&value.to_string()).unwrap(), value);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>(), edny in "[\\[\\](){}:\"\\\\u0-9a-f, -]{0,40}") {
            let _ = parse(&text);
            let _ = parse(&edny);
        }
    }

    #[test]
    fn commas_are_blank_and_lists_are_vectors() {
        let plain = parse("[1 [2 nil] {:a true}]").unwrap();
        assert_eq!(parse(" (1, (2,nil),{:a, true} ) ").unwrap(), plain);
    }

    #[test]
    fn errors_say_where_and_what() {
        let cases = [
            ("", "column 1: a value is missing"),
            ("[1 2", "column 5: ']' is missing"),
            ("[1 2)", "column 5: no value begins here"),
            ("{:a}", "column 1: a map has a key without a value"),
            ("{:a 1, :a 2}", "column 1: a map has the key :a twice"),
            ("[1 x]", "column 4: \"x\" is neither nil, true, false, an integer, a string nor a keyword"),
            ("1.5", "column 1: \"1.5\" is no integer of 64 bits"),
            ("9223372036854775808", "column 1: \"9223372036854775808\" is no integer of 64 bits"),
            ("\"abc", "column 2: a string does not end"),
            ("\"\\q\"", "column 3: an escape that is none of \\\" \\\\ \\n \\t \\r \\uXXXX"),
            ("\"\\ud800\"", "column 4: \\u needs four hexadecimal digits of a character"),
            (": 1", "column 2: a keyword has no name"),
            ("1 2", "column 3: '2' after the end of the value"),
        ];
        for (text, error) in cases {
            assert_eq!(parse(text).unwrap_err().to_string(), error, "{text}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        assert!(parse(&"[".repeat(100_000)).unwrap_err().what.starts_with("nested deeper"));
        assert!(parse(&format!("{}{}", "[".repeat(DEPTH_MAX + 1), "]".repeat(DEPTH_MAX + 1))).is_ok());
    }
}
