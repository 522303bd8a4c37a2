//! Standard output: lines, bytes as text, messages as JSON.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use multiraft_proto::descriptor_pool;
use prost::{Message, Name};
use prost_reflect::DynamicMessage;

use super::Failure;

/// Writes the text and a line end to standard output.
///
/// # Errors
/// [`Failure::Output`]; with a closed pipe it is silent and its exit code 0.
pub fn print_line(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()?;
    Ok(())
}

/// Prints the JSON of the answer, or the text.
pub(super) fn print_answer<M: Message + Name>(
    what: &'static str,
    json: bool,
    answer: &M,
    text: &str,
) -> Result<(), Failure> {
    if json {
        print_line(&json_line(what, answer)?)
    } else {
        print_line(text)
    }
}

/// The message in proto3 JSON form, on one line.
///
/// # Errors
/// A message with a time or duration that proto3 JSON cannot write.
pub fn json_line<M: Message + Name>(what: &'static str, message: &M) -> Result<String, Failure> {
    let descriptor = descriptor_pool()
        .get_message_by_name(&M::full_name())
        .expect("the pool holds all generated messages");
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic
        .transcode_from(message)
        .expect("the descriptor is the type's own");
    serde_json::to_string(&dynamic).map_err(|source| Failure::Json { what, source })
}

/// The bytes on one line: control characters, backslashes and what is not UTF-8 are escaped.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("a String takes all");
        }
    }
    text
}

/// The bytes as they are if they are plain text, with its line ends and tabs; escaped otherwise,
/// so that no value can take over a terminal.
pub fn printable(bytes: &[u8]) -> String {
    let plain = |c: char| !c.is_control() || matches!(c, '\n' | '\t' | '\r');
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(plain) => text.to_owned(),
        Ok(_) | Err(_) => escape(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_escaped_where_they_are_no_text() {
        for (bytes, line, value) in [
            (&b"hello"[..], "hello", "hello"),
            ("grün".as_bytes(), "grün", "grün"),
            (b"a\tb\nc\\", "a\\tb\\nc\\\\", "a\tb\nc\\"),
            (
                b"\xff\x00ok\xc3",
                "\\xff\\u{0}ok\\xc3",
                "\\xff\\u{0}ok\\xc3",
            ),
            (b"\x1b[31m", "\\u{1b}[31m", "\\u{1b}[31m"),
            (b"", "", ""),
        ] {
            assert_eq!(
                (escape(bytes), printable(bytes)),
                (line.into(), value.into()),
                "{bytes:?}"
            );
        }
    }
}
