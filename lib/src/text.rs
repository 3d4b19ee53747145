//! Names from the kernel, made safe to show.

use std::borrow::Cow;

/// Kernel bytes as text without control characters: what is not printable UTF-8, and the backslash,
/// is shown as `\xNN`, byte by byte, so that each text stands for one name only.
pub fn escape(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(plain) => Cow::Borrowed(text),
        _ => Cow::Owned(spell(bytes)),
    }
}

fn spell(bytes: &[u8]) -> String {
    let mut out = String::new();
    let hex = |out: &mut String, bytes: &[u8]| {
        for byte in bytes {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    };
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match plain(letter) {
                true => out.push(letter),
                false => hex(&mut out, letter.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        hex(&mut out, chunk.invalid());
    }
    out
}

/// Whether a letter can be shown as it is: no control, nothing that reorders or hides text.
fn plain(letter: char) -> bool {
    !letter.is_control()
        && !matches!(letter, '\\' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_and_bidi_characters_become_visible() {
        assert_eq!(escape(b"a\x1b[31m\n"), "a\\x1b[31m\\x0a");
        assert_eq!(escape("\u{202e}x\\".as_bytes()), "\\xe2\\x80\\xaex\\x5c");
        assert_eq!(escape("größe".as_bytes()), "größe");
    }

    proptest! {
        #[test]
        fn a_shown_name_has_no_control_and_means_one_name(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let shown = escape(&bytes).into_owned();
            prop_assert!(!shown.chars().any(char::is_control));
            let mut back = Vec::new();
            let mut rest = shown.as_bytes();
            while let Some((&first, after)) = rest.split_first() {
                if first == b'\\' {
                    back.push(u8::from_str_radix(std::str::from_utf8(&after[1..3]).unwrap(), 16).unwrap());
                    rest = &after[3..];
                } else {
                    back.push(first);
                    rest = after;
                }
            }
            prop_assert_eq!(back, bytes);
        }
    }
}
