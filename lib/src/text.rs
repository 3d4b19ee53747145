//! Escaping of names that come from the kernel, for messages and tables.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Escapes bytes from the kernel, so that they are safe and unambiguous to show.
///
/// Printable UTF-8 stays. Each byte of a control character, of a character that is invisible or
/// changes the direction of text, and of a line or paragraph separator, and each byte that is not
/// UTF-8 becomes `\xNN`; a backslash becomes `\\`. The result is one line, and differs for any two
/// names.
pub fn escape(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        if !text.contains(|letter| letter == '\\' || hidden(letter)) {
            return Cow::Borrowed(text);
        }
    }
    let mut shown = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\\' => shown.push_str("\\\\"),
                _ => show(&mut shown, letter),
            }
        }
        show_bytes(&mut shown, chunk.invalid());
    }
    Cow::Owned(shown)
}

/// Escapes the characters of a message that [`escape`] would, but not backslashes, since the names
/// in it are escaped already. The result is one line.
pub fn one_line(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    message.chars().for_each(|letter| show(&mut shown, letter));
    shown
}

fn show(shown: &mut String, letter: char) {
    match hidden(letter) {
        true => show_bytes(shown, letter.encode_utf8(&mut [0; 4]).as_bytes()),
        false => shown.push(letter),
    }
}

fn show_bytes(shown: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(shown, "\\x{byte:02x}");
    }
}

/// Says whether a character changes a line instead of being shown in it.
fn hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
            // Zero width, direction marks; separators, directions; joiners, isolates.
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            // Annotations, tags.
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_is_shown_on_one_line_and_never_as_another() {
        assert_eq!(escape("näme 名.txt".as_bytes()), "näme 名.txt");
        assert!(matches!(escape(b"plain"), Cow::Borrowed(_)));
        assert_eq!(escape(b"a\nb\x1b[\x7f"), "a\\x0ab\\x1b[\\x7f");
        assert_eq!(escape(b"\\x0a"), "\\\\x0a");
        assert_eq!(escape(b"\xff\xe2\x80"), "\\xff\\xe2\\x80");
        assert_eq!(escape("\u{202e}\u{85}".as_bytes()), "\\xe2\\x80\\xae\\xc2\\x85");
        for hidden in ['\u{200e}', '\u{2069}', '\u{2028}', '\u{feff}', '\u{200b}'] {
            assert!(escape(hidden.to_string().as_bytes()).starts_with("\\x"), "{hidden:?}");
        }
    }

    fn unescape(shown: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = shown.as_bytes();
        while let [first, tail @ ..] = rest {
            rest = match (first, tail) {
                (b'\\', [b'x', hex @ ..]) => {
                    let hex_text = std::str::from_utf8(&hex[..2]).unwrap();
                    bytes.push(u8::from_str_radix(hex_text, 16).unwrap());
                    &hex[2..]
                }
                (b'\\', [b'\\', tail @ ..]) => {
                    bytes.push(b'\\');
                    tail
                }
                (first, tail) => {
                    bytes.push(*first);
                    tail
                }
            };
        }
        bytes
    }

    proptest! {
        #[test]
        fn what_is_shown_has_no_controls_and_tells_every_byte(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "[\\\\x0-9a-f\u{7f}-\u{a0}\u{2000}-\u{2070}]{0,20}".prop_map(String::into_bytes),
            ],
        ) {
            let shown = escape(&bytes);
            prop_assert!(!shown.contains(hidden), "{:?}", shown);
            prop_assert_eq!(unescape(&shown), bytes);
        }
    }
}
