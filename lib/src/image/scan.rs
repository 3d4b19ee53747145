//! A scanner of CBOR (RFC 8949), which finds the end of the next item of an image and checks it
//! against the rules of fdimage(5) before serde sees a byte.
//!
//! A general decoder takes more than an image may hold (floats, tags, packed structs, a key
//! twice), makes 48 bytes of one, and believes a length before it has seen the data. So nothing
//! reaches it but a slice which [`item`] called whole. The functions that read such a slice again
//! ([`record`], [`field`], [`entries`], [`tokens`]) rely on that for their answer but not for their
//! safety: other bytes make them end early.

use std::fmt;

/// The most bytes in one item, the mark of the first item included.
pub const MAX_ITEM: usize = 8 << 20;

/// The most arrays and maps that are nested in one another.
pub const MAX_DEPTH: usize = 16;

/// The most values in one item: itself, and every element, key and value in it.
pub const MAX_VALUES: usize = 1 << 20;

/// The most keys in one map. It bounds the search for a key that comes twice.
pub const MAX_KEYS: usize = 64;

/// Tag 55799, the mark with which the first item of an image begins.
pub const MARK: [u8; 3] = [0xd9, 0xd9, 0xf7];

const TOO_LONG: &str = "item longer than 8 MiB";
const TOO_MANY: &str = "more than 1048576 values in one item";
const TOO_DEEP: &str = "arrays and maps more than 16 deep";
const TOO_MANY_KEYS: &str = "map of more than 64 keys";

/// The item with which some bytes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole item, of this many bytes.
    Whole(usize),
    /// An item which is not whole yet: it has at least this many bytes in all, more than there
    /// were. A reader reads at least that many before it asks again; if it also takes what more it
    /// can get, up to twice what it has, no byte is scanned more than a few times.
    Short(usize),
}

/// A rule of the format that bytes break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The offset in the slice at which they do.
    pub at: usize,
    /// The rule, in words for the user.
    pub why: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.at, self.why)
    }
}

impl std::error::Error for Malformed {}

/// A value without the values in it, as [`tokens`] gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// An integer from zero up.
    Uint(u64),
    /// A negative integer: for n, the value is -1-n.
    Nint(u64),
    /// A byte string.
    Bytes(&'a [u8]),
    /// A text string.
    Text(&'a str),
    /// An array; so many values follow.
    Array(u64),
    /// A map; so many pairs of key and value follow.
    Map(u64),
    /// True or false.
    Bool(bool),
    /// Null.
    Null,
}

/// Finds the end of the item with which `buf` begins.
pub fn item(buf: &[u8]) -> Result<Found, Malformed> {
    scan(buf, 0)
}

/// Finds the end of the first item of an image: the same, after [`MARK`], which the length
/// includes.
pub fn first(buf: &[u8]) -> Result<Found, Malformed> {
    if buf.starts_with(&MARK) {
        scan(buf, MARK.len())
    } else if MARK.starts_with(buf) {
        Ok(Found::Short(MARK.len() + 1))
    } else {
        Err(Malformed { at: 0, why: "not an fdkit image" })
    }
}

/// The one key of a record `{ "key": value }` and the bytes of its value.
///
/// `whole` is exactly one item, without [`MARK`]. None if it is not a map of one key.
pub fn record(whole: &[u8]) -> Option<(&[u8], &[u8])> {
    let (0xa1, rest) = whole.split_first()? else { return None };
    let (first, _, key, len) = raw(rest).ok()?;
    let value = rest.get(len..).filter(|_| first >> 5 == 3)?;
    (!value.is_empty()).then_some((key, value))
}

/// The bytes of the value under this key in a map, with whose head `map` begins.
pub fn field<'a>(map: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let (5, pairs, mut at) = head(map).ok().map(|(first, arg, len)| (first >> 5, arg, len))? else {
        return None;
    };
    for _ in 0..pairs {
        let (_, _, each, len) = raw(map.get(at..)?).ok()?;
        let value = map.get(at + len..)?;
        let end = span(value)?;
        if each == key.as_bytes() {
            return value.get(..end);
        }
        at += len + end;
    }
    None
}

/// The keys of a map and the bytes of their values, in the order of the stream. `map` begins with
/// the map's head.
pub fn entries(map: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    let (mut left, mut rest) = match token(map) {
        Ok((Token::Map(pairs), head)) => (pairs, map.get(head..).unwrap_or_default()),
        _ => (0, map),
    };
    std::iter::from_fn(move || {
        left = left.checked_sub(1)?;
        let (Token::Text(key), len) = token(rest).ok()? else { return None };
        let after = rest.get(len..)?;
        let (value, next) = after.split_at_checked(span(after)?)?;
        rest = next;
        Some((key, value))
    })
    .fuse()
}

/// Adds `key: raw` to an encoded map; `raw` is one encoded item.
///
/// A body that is bytes already gets into a record by this: serde writes the record with fewer than
/// 23 entries, so that its first byte has the count, and the body follows. Any other `map`, and a
/// key longer than 23 bytes, leave `map` as it is, and a debug build panics.
pub fn push_field(map: &mut Vec<u8>, key: &str, raw: &[u8]) {
    let (Some(count @ 0xa0..=0xb6), len @ 0..=23) = (map.first_mut(), key.len()) else {
        debug_assert!(false, "push_field: not a map of fewer than 23 entries, or a long key");
        return;
    };
    *count += 1;
    map.push(0x60 + len as u8);
    map.extend_from_slice(key.as_bytes());
    map.extend_from_slice(raw);
}

/// The tokens of checked bytes, which are one item or several, outermost first.
pub fn tokens(buf: &[u8]) -> impl Iterator<Item = Token<'_>> {
    let mut rest = buf;
    std::iter::from_fn(move || {
        let (token, len) = token(rest).ok()?;
        rest = rest.get(len..)?;
        Some(token)
    })
    .fuse()
}

/// The reason for which there is no token.
enum Incomplete {
    /// The token has at least this many bytes, and there are fewer.
    Short(usize),
    Malformed(Malformed),
}

fn refuse<T>(at: usize, why: &'static str) -> Result<T, Incomplete> {
    Err(Incomplete::Malformed(Malformed { at, why }))
}

/// The first byte of a value, its argument, and the length of the two: the encoding of CBOR, and
/// what of it an image leaves out, are known here alone.
#[inline(always)]
fn head(buf: &[u8]) -> Result<(u8, u64, usize), Incomplete> {
    let Some((&first, rest)) = buf.split_first() else { return Err(Incomplete::Short(1)) };
    if first >= 0xc0 {
        return match first {
            0xf4..=0xf6 => Ok((first, 0, 1)),
            0xc0..=0xdf => refuse(0, "tag"),
            0xf7 => refuse(0, "undefined"),
            0xf9..=0xfb => refuse(0, "floating-point number"),
            0xff => refuse(0, "break without a beginning"),
            _ => refuse(0, "unknown simple value"),
        };
    }
    // An argument is in its shortest form if it would not have fitted into the form before.
    let (arg, len, least) = match first & 0x1f {
        small @ 0..=23 => return Ok((first, small.into(), 1)),
        24 => (wide(rest).map(u8::from_be_bytes).map(u64::from), 2, 24),
        25 => (wide(rest).map(u16::from_be_bytes).map(u64::from), 3, 1 << 8),
        26 => (wide(rest).map(u32::from_be_bytes).map(u64::from), 5, 1 << 16),
        27 => (wide(rest).map(u64::from_be_bytes), 9, 1 << 32),
        31 if first >> 5 >= 2 => return refuse(0, "indefinite length"),
        _ => return refuse(0, "reserved kind of head"),
    };
    match arg {
        None => Err(Incomplete::Short(len)),
        Some(arg) if arg >= least => Ok((first, arg, len)),
        Some(_) if first >> 5 < 2 => refuse(0, "integer not in its shortest form"),
        Some(_) => refuse(0, "length not in its shortest form"),
    }
}

#[inline(always)]
fn wide<const N: usize>(rest: &[u8]) -> Option<[u8; N]> {
    rest.first_chunk().copied()
}

/// A value: its first byte, its argument, the bytes of a string, and the length of all three.
#[inline(always)]
fn raw(buf: &[u8]) -> Result<(u8, u64, &[u8], usize), Incomplete> {
    let (first, arg, head) = head(buf)?;
    if !matches!(first >> 5, 2 | 3) {
        return Ok((first, arg, &[], head));
    }
    if arg > MAX_ITEM as u64 {
        return refuse(0, TOO_LONG);
    }
    let len = head + arg as usize;
    match buf.get(head..len) {
        Some(bytes) => Ok((first, arg, bytes, len)),
        None => Err(Incomplete::Short(len)),
    }
}

fn text(bytes: &[u8], len: usize) -> Result<&str, Incomplete> {
    let broken = |bad: std::str::Utf8Error| Malformed {
        at: len - bytes.len() + bad.valid_up_to(),
        why: "text that is not UTF-8",
    };
    std::str::from_utf8(bytes).map_err(|bad| Incomplete::Malformed(broken(bad)))
}

/// The token with which `buf` begins, and its length.
#[inline(always)]
fn token(buf: &[u8]) -> Result<(Token<'_>, usize), Incomplete> {
    let (first, arg, bytes, len) = raw(buf)?;
    let token = match first >> 5 {
        0 => Token::Uint(arg),
        1 => Token::Nint(arg),
        2 => Token::Bytes(bytes),
        3 => Token::Text(text(bytes, len)?),
        4 => Token::Array(arg),
        5 => Token::Map(arg),
        _ if first == 0xf6 => Token::Null,
        _ => Token::Bool(first == 0xf5),
    };
    Ok((token, len))
}

/// The length of the item with which checked bytes begin. None if it is not whole.
pub(super) fn span(buf: &[u8]) -> Option<usize> {
    let (mut at, mut missing) = (0, 1u64);
    while missing > 0 {
        let (first, arg, head) = head(buf.get(at..)?).ok()?;
        missing -= 1;
        at += head;
        match first >> 5 {
            2 | 3 => at = at.checked_add(usize::try_from(arg).ok()?)?,
            4 => missing = missing.checked_add(arg)?,
            5 => missing = missing.checked_add(arg.checked_mul(2)?)?,
            _ => (),
        }
    }
    (at <= buf.len()).then_some(at)
}

/// An array or a map which is not complete yet.
#[derive(Clone, Copy)]
struct Container {
    /// The values that are still missing, keys included: an even number of them begins with a key.
    left: usize,
    map: bool,
    /// The number of keys that are kept of the maps around it.
    keys: usize,
}

fn scan(buf: &[u8], from: usize) -> Result<Found, Malformed> {
    // The item itself is the only element of an array around it.
    let mut top = Container { left: 1, map: false, keys: 0 };
    let mut around = [top; MAX_DEPTH];
    let mut depth = 0;
    let mut keys = Keys::new();
    let mut at = from;
    // The values that are missing in all containers, and all that were announced until now.
    let (mut missing, mut values) = (1, 1);
    loop {
        let rest = &buf[at..];
        let key = top.map && top.left % 2 == 0;
        if key && rest.first().is_some_and(|first| first >> 5 != 3) {
            return Err(Malformed { at, why: "key that is not text" });
        }
        top.left -= 1;
        missing -= 1;
        // Most text is ASCII, and a check for that is faster than one for UTF-8.
        let checked = raw(rest).and_then(|found| match found {
            (first, _, bytes, len) if first >> 5 == 3 && !bytes.is_ascii() => {
                text(bytes, len).map(|_| found)
            }
            _ => Ok(found),
        });
        let (major, count, len) = match checked {
            Ok((first, arg, _, len)) => (first >> 5, arg, len),
            Err(Incomplete::Malformed(bad)) => return Err(Malformed { at: at + bad.at, ..bad }),
            Err(Incomplete::Short(len)) if at + len + missing <= MAX_ITEM => {
                return Ok(Found::Short(at + len + missing));
            }
            Err(Incomplete::Short(_)) => return Err(Malformed { at, why: TOO_LONG }),
        };
        let start = at;
        let bad = move |why| Err(Malformed { at: start, why });
        at += len;
        if let 4 | 5 = major {
            let map = major == 5;
            if map && count > MAX_KEYS as u64 {
                return bad(TOO_MANY_KEYS);
            }
            // A map has too few keys for this to overflow.
            let left = if map { 2 * count } else { count };
            if left > (MAX_VALUES - values) as u64 {
                return bad(TOO_MANY);
            }
            if depth == MAX_DEPTH {
                return bad(TOO_DEEP);
            }
            let left = left as usize;
            missing += left;
            values += left;
            around[depth] = top;
            depth += 1;
            top = Container { left, map, keys: keys.len };
        }
        if at + missing > MAX_ITEM {
            return bad(TOO_LONG);
        }
        if key && !keys.add(buf, start, at, top.keys) {
            return bad("key that the map has already");
        }
        while top.left == 0 {
            if depth == 0 {
                return Ok(Found::Whole(at));
            }
            keys.forget(top.keys);
            depth -= 1;
            top = around[depth];
        }
    }
}

/// How many keys are kept without allocation. No record that fdkit writes has more in open maps.
const NEAR: usize = 64;

/// The keys of all open maps, innermost last. A key is kept as its offset, and in the low bits a
/// hash of it, so that keys are hardly ever compared byte by byte unless they are equal.
struct Keys {
    /// The first of them.
    near: [u32; NEAR],
    /// The rest.
    far: Vec<u32>,
    len: usize,
}

/// The bits of the hash of a key.
const HASH: u32 = (1 << 9) - 1;
const _: () = assert!(MAX_ITEM << 9 <= 1 << 32);

/// A hash of an encoded key, of its first two bytes and its last.
#[inline(always)]
fn hash(key: &[u8]) -> u32 {
    // The first byte has the length, or says that it is long.
    let (head, last) = (u32::from(key[0]), u32::from(key[key.len() - 1]));
    let second = key.get(1).map_or(0, |&byte| u32::from(byte));
    (head.wrapping_mul(37) ^ second << 4 ^ last) & HASH
}

impl Keys {
    fn new() -> Self {
        Keys { near: [0; NEAR], far: Vec::new(), len: 0 }
    }

    /// Adds the key at `buf[start..end]` to the map whose keys begin at index `since`. False if the
    /// map has it already.
    #[inline(always)]
    fn add(&mut self, buf: &[u8], start: usize, end: usize, since: usize) -> bool {
        let key = &buf[start..end];
        let hash = hash(key);
        // No encoded key begins with another, so one that begins with this is this.
        let same =
            |&kept: &u32| kept & HASH == hash && buf[(kept >> 9) as usize..].starts_with(key);
        let near = self.len.min(NEAR);
        if self.near[since.min(near)..near].iter().any(same)
            || self.far[since.saturating_sub(NEAR)..].iter().any(same)
        {
            return false;
        }
        let kept = ((start as u32) << 9) + hash;
        match self.near.get_mut(self.len) {
            Some(place) => *place = kept,
            None => self.far.push(kept),
        }
        self.len += 1;
        true
    }

    /// Removes the keys from index `since` on.
    #[inline(always)]
    fn forget(&mut self, since: usize) {
        self.len = since;
        if !self.far.is_empty() {
            self.far.truncate(since.saturating_sub(NEAR));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_cbor::Value;

    /// Any value that an image may hold.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::Bool),
            Just(Value::Null),
            // CBOR has 64 bits in both directions.
            (-(1i128 << 64)..1i128 << 64).prop_map(Value::Integer),
            (-300i128..300).prop_map(Value::Integer),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(Value::Bytes),
            ".{0,30}".prop_map(Value::Text),
        ];
        leaf.prop_recursive(6, 60, 8, |inner| {
            let key = ".{0,6}".prop_map(Value::Text);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
                prop::collection::btree_map(key, inner, 0..8).prop_map(Value::Map),
            ]
        })
    }

    fn encoded(value: &Value) -> Vec<u8> {
        serde_cbor::to_vec(value).unwrap()
    }

    fn why(bytes: &[u8]) -> &'static str {
        item(bytes).map(|found| panic!("{bytes:02x?}: {found:?}")).unwrap_err().why
    }

    proptest! {
        #[test]
        fn any_value_is_whole_at_its_end_and_short_before(value in value(), next in any::<u8>()) {
            let mut bytes = encoded(&value);
            let len = bytes.len();
            for cut in 0..len {
                match item(&bytes[..cut]) {
                    Ok(Found::Short(need)) => prop_assert!(cut < need && need <= len),
                    other => prop_assert!(false, "cut at {} of {}: {:?}", cut, len, other),
                }
            }
            bytes.push(next);
            prop_assert_eq!(item(&bytes), Ok(Found::Whole(len)));
            prop_assert_eq!(span(&bytes), Some(len));
        }

        #[test]
        fn what_is_called_whole_is_what_a_decoder_takes(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                (value(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(value, at, byte)| {
                    let mut bytes = encoded(&value);
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                    bytes
                }),
            ],
        ) {
            if let Ok(Found::Whole(len)) = item(&bytes) {
                let decoded: Result<Value, _> = serde_cbor::from_slice(&bytes[..len]);
                prop_assert!(decoded.is_ok(), "{:?}", decoded);
                prop_assert_eq!(encoded(&decoded.unwrap()).len(), len);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = first(&bytes);
            let _ = record(&bytes);
            let _ = field(&bytes, "a");
            prop_assert!(entries(&bytes).count() <= bytes.len());
            prop_assert!(tokens(&bytes).count() <= bytes.len());
        }

        #[test]
        fn a_field_is_found_again(
            map in prop::collection::btree_map(".{0,8}", value(), 0..20), key in ".{0,5}",
            body in value(),
        ) {
            let bytes: std::collections::BTreeMap<Value, Value> =
                map.iter().map(|(key, value)| (Value::Text(key.clone()), value.clone())).collect();
            let mut bytes = encoded(&Value::Map(bytes));
            for (key, value) in &map {
                prop_assert_eq!(field(&bytes, key).map(<[u8]>::to_vec), Some(encoded(value)));
            }
            if !map.contains_key(&key) {
                prop_assert_eq!(field(&bytes, &key), None);
                push_field(&mut bytes, &key, &encoded(&body));
                prop_assert_eq!(item(&bytes), Ok(Found::Whole(bytes.len())));
                prop_assert_eq!(field(&bytes, &key).map(<[u8]>::to_vec), Some(encoded(&body)));
            }
        }
    }

    #[test]
    fn what_an_image_leaves_out_of_cbor_is_refused() {
        for (bytes, reason) in [
            (&[0xc1, 0x00][..], "tag"),
            (&[0xf7], "undefined"),
            (&[0xf9, 0, 0], "floating-point number"),
            (&[0xfb, 0, 0, 0, 0, 0, 0, 0, 0], "floating-point number"),
            (&[0xff], "break without a beginning"),
            (&[0xe0], "unknown simple value"),
            (&[0x5f], "indefinite length"),
            (&[0x9f], "indefinite length"),
            (&[0xbf], "indefinite length"),
            (&[0x1c], "reserved kind of head"),
            (&[0x18, 23], "integer not in its shortest form"),
            (&[0x39, 0, 255], "integer not in its shortest form"),
            (&[0x1b, 0, 0, 0, 0, 255, 255, 255, 255], "integer not in its shortest form"),
            (&[0x58, 1, 0], "length not in its shortest form"),
            (&[0x61, 0xff], "text that is not UTF-8"),
            (&[0xa1, 0x01, 0x01], "key that is not text"),
            (&[0xa2, 0x61, b'a', 1, 0x61, b'a', 1], "key that the map has already"),
        ] {
            assert_eq!(why(bytes), reason, "{bytes:02x?}");
        }
    }

    #[test]
    fn an_argument_has_its_shortest_form() {
        for (bytes, arg) in [
            (&[0x17][..], 23),
            (&[0x18, 24], 24),
            (&[0x18, 0xff], 0xff),
            (&[0x19, 1, 0], 0x100),
            (&[0x19, 0xff, 0xff], 0xffff),
            (&[0x1a, 0, 1, 0, 0], 0x1_0000),
            (&[0x1a, 0xff, 0xff, 0xff, 0xff], 0xffff_ffff),
            (&[0x1b, 0, 0, 0, 1, 0, 0, 0, 0], 0x1_0000_0000),
        ] {
            assert_eq!(item(bytes), Ok(Found::Whole(bytes.len())));
            assert_eq!(tokens(bytes).collect::<Vec<_>>(), [Token::Uint(arg)]);
            let mut negative = bytes.to_vec();
            negative[0] |= 0x20;
            assert_eq!(tokens(&negative).collect::<Vec<_>>(), [Token::Nint(arg)]);
            for cut in 0..bytes.len() {
                assert_eq!(
                    item(&bytes[..cut]),
                    Ok(Found::Short(if cut == 0 { 1 } else { bytes.len() }))
                );
            }
        }
        for bytes in [
            &[0x18, 0][..],
            &[0x18, 23],
            &[0x19, 0, 0xff],
            &[0x1a, 0, 0, 0xff, 0xff],
            &[0x1b, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
            &[0x38, 23],
        ] {
            assert_eq!(why(bytes), "integer not in its shortest form", "{bytes:02x?}");
        }
        for first in [0x58, 0x78, 0x98, 0xb8] {
            assert_eq!(why(&[first, 23]), "length not in its shortest form", "{first:02x}");
        }
        for first in [0x1c, 0x1d, 0x1e, 0x1f, 0x3c, 0x3f, 0x5c, 0x7d, 0xbe] {
            assert_eq!(why(&[first]), "reserved kind of head", "{first:02x}");
        }
        for (first, reason) in [
            (0xc0, "tag"),
            (0xdf, "tag"),
            (0xe0, "unknown simple value"),
            (0xf3, "unknown simple value"),
            (0xf8, "unknown simple value"),
            (0xfc, "unknown simple value"),
            (0x7f, "indefinite length"),
        ] {
            assert_eq!(why(&[first, 0]), reason, "{first:02x}");
        }
    }

    #[test]
    fn tokens_are_all_values_outermost_first() {
        let bytes = [
            0x84, 0x01, 0x20, 0x42, 0xff, 0x00, 0xa2, 0x61, b'a', 0xf4, 0x61, b'b', 0xf5, 0xf6,
            0x60,
        ];
        let wanted = [
            Token::Array(4),
            Token::Uint(1),
            Token::Nint(0),
            Token::Bytes(&[0xff, 0]),
            Token::Map(2),
            Token::Text("a"),
            Token::Bool(false),
            Token::Text("b"),
            Token::Bool(true),
            Token::Null,
            Token::Text(""),
        ];
        assert_eq!(tokens(&bytes).collect::<Vec<_>>(), wanted);
        // They end where the bytes do, or where those are no text.
        assert_eq!(tokens(&bytes[..5]).collect::<Vec<_>>(), wanted[..3]);
        assert_eq!(tokens(&[0x01, 0x61, 0xff, 0x01]).collect::<Vec<_>>(), [Token::Uint(1)]);
    }

    #[test]
    fn a_record_is_a_map_of_one_text_key() {
        assert_eq!(record(&[0xa1, 0x62, b'a', b'b', 0x01]), Some((&b"ab"[..], &[1][..])));
        assert_eq!(record(&[0xa1, 0x60, 0x81, 0x01]), Some((&b""[..], &[0x81, 1][..])));
        for other in [
            &[][..],
            &[0xa0],
            &[0xa1],
            &[0xa1, 0x61, b'a'],
            &[0xa1, 0x62, b'a'],
            &[0xa1, 0x41, b'a', 0x01],
            &[0xa1, 0x01, 0x01],
            &[0xa2, 0x61, b'a', 0x01, 0x61, b'b', 0x01],
            &[0x82, 0x61, b'a', 0x01],
        ] {
            assert_eq!(record(other), None, "{other:02x?}");
        }
    }

    #[test]
    fn entries_are_the_keys_of_a_map_and_their_values() {
        let map = [0xa2, 0x61, b'a', 0x81, 0x05, 0x62, b'b', b'c', 0xf6, 0x07];
        let all = [("a", &[0x81, 5][..]), ("bc", &[0xf6])];
        assert_eq!(entries(&map).collect::<Vec<_>>(), all);
        assert_eq!(field(&map, "bc"), Some(&[0xf6][..]));
        // The item after the map is none of its keys.
        let after = [0xa1, 0x61, b'a', 0x01, 0x61, b'b', 0x02];
        assert_eq!(entries(&after).collect::<Vec<_>>(), [("a", &[1][..])]);
        assert_eq!((field(&after, "a"), field(&after, "b")), (Some(&[1][..]), None));
        // Cut off, or no map, or a key that is no text.
        assert_eq!(entries(&map[..8]).collect::<Vec<_>>(), all[..1]);
        assert_eq!(field(&map[..8], "bc"), None);
        for other in [&[0x82, 0x61, b'a', 0x01][..], &[0xa1, 0x41, b'a', 0x01], &[]] {
            assert_eq!(entries(other).count(), 0, "{other:02x?}");
        }
        for other in [&[0x82, 0x61, b'a', 0x01][..], &[0x01], &[]] {
            assert_eq!(field(other, "a"), None, "{other:02x?}");
        }
        assert_eq!(span(&[0x42, 0x01]), None);
        assert_eq!(span(&[0x42, 0x01, 0x02, 0x03]), Some(3));
        assert_eq!(span(&[0x9b, 255, 255, 255, 255, 255, 255, 255, 255, 0x01]), None);
    }

    #[test]
    fn a_field_is_added_to_a_map_whose_head_has_one_byte() {
        let mut map = vec![0xa0];
        for key in 0..23_u8 {
            let name: String = (0..key).map(|letter| (b'a' + letter) as char).collect();
            push_field(&mut map, &name, &[key]);
            assert_eq!(map[0], 0xa1 + key);
        }
        push_field(&mut vec![0xb6], "a name of 23 bytes here", &[0]);
        assert_eq!(item(&map), Ok(Found::Whole(map.len())));
        assert_eq!(entries(&map).count(), 23);
        assert_eq!(field(&map, "abcdefghijklmnopqrstuv"), Some(&[22][..]));
    }

    #[test]
    #[should_panic = "push_field"]
    fn no_field_is_added_to_a_map_of_23() {
        push_field(&mut vec![0xb7], "a", &[0]);
    }

    #[test]
    #[should_panic = "push_field"]
    fn no_field_is_added_to_an_array() {
        push_field(&mut vec![0x81], "a", &[0]);
    }

    #[test]
    #[should_panic = "push_field"]
    fn no_field_is_added_whose_key_is_long() {
        push_field(&mut vec![0xa0], "a name of 24 bytes here.", &[0]);
    }

    #[test]
    fn the_first_item_comes_after_the_mark() {
        let image = [&MARK[..], &[0x82, 0x01, 0x02]].concat();
        assert_eq!(first(&image), Ok(Found::Whole(6)));
        assert_eq!(first(&image[..5]), Ok(Found::Short(6)));
        for cut in 0..=MARK.len() {
            assert_eq!(first(&image[..cut]), Ok(Found::Short(4)), "{cut}");
        }
        let bad = first(&[MARK[0], 0x01]).unwrap_err();
        assert_eq!(bad.to_string(), "byte 0: not an fdkit image");
    }

    #[test]
    fn what_breaks_a_rule_is_told_by_its_place() {
        for (bytes, at) in [
            (&[0xff][..], 0),
            (&[0x82, 0x01, 0xff], 2),
            (&[0x82, 0x01, 0x18, 0x00], 2),
            (&[0x63, b'a', 0xff, b'b'], 2),
            (&[0x81, 0x78, 24, b'a', b'b', 0xc3], 1),
            (&[0x82, 0x01, 0x63, b'a', 0xc3, b'b'], 4),
            (&[0xa1, 0x61, b'a', 0xa1, 0x01, 0x01], 4),
            (&[0xa2, 0x61, b'a', 0x01, 0x41, b'b', 0x01], 4),
            (&[0x81, 0xa2, 0x61, b'a', 0x01, 0x61, b'a', 0x01], 5),
            (&[0x82, 0x01, 0xb8, 65], 2),
            (&[0x82, 0x01, 0x9a, 0, 0x10, 0, 0], 2),
            (&[0x82, 0x01, 0x5a, 1, 0, 0, 0], 2),
        ] {
            match item(bytes) {
                Err(bad) => assert_eq!(bad.at, at, "{bytes:02x?}: {bad}"),
                // A text that is cut is not looked at.
                Ok(found) => assert_eq!((found, at), (Found::Short(27), 1)),
            }
        }
    }

    #[test]
    fn the_place_in_a_long_text_is_that_of_its_byte() {
        let mut text = vec![0x81, 0x78, 24];
        text.extend([b'a'; 23]);
        text.push(0xff);
        assert_eq!(item(&text), Err(Malformed { at: 26, why: "text that is not UTF-8" }));
    }

    #[test]
    fn an_item_has_as_many_bytes_and_values_as_may_be_and_no_more() {
        // A string that fills an item but for the head of five bytes, and of an array before it.
        let string = |len: usize| {
            let mut bytes = vec![0x5a];
            bytes.extend((len as u32).to_be_bytes());
            bytes.resize(5 + len, 0);
            bytes
        };
        let whole = string(MAX_ITEM - 5);
        assert_eq!(item(&whole), Ok(Found::Whole(MAX_ITEM)));
        assert_eq!(item(&whole[..9]), Ok(Found::Short(MAX_ITEM)));
        let more = string(MAX_ITEM - 4);
        assert_eq!(item(&more), Err(Malformed { at: 0, why: TOO_LONG }));
        assert_eq!(item(&more[..9]), Err(Malformed { at: 0, why: TOO_LONG }));
        let pair = |len| [&[0x82][..], &string(len), &[0x01]].concat();
        assert_eq!(item(&pair(MAX_ITEM - 7)), Ok(Found::Whole(MAX_ITEM)));
        assert_eq!(item(&pair(MAX_ITEM - 7)[..9]), Ok(Found::Short(MAX_ITEM)));
        // The string fits, and the value after it does not: it is known at the string.
        let too_long = Err(Malformed { at: 1, why: TOO_LONG });
        assert_eq!(item(&pair(MAX_ITEM - 6)), too_long);
        assert_eq!(item(&pair(MAX_ITEM - 6)[..9]), too_long);

        let array = |count: u32| {
            let mut bytes = vec![0x9a];
            bytes.extend(count.to_be_bytes());
            bytes.resize(5 + count as usize, 0);
            bytes
        };
        let most = array(MAX_VALUES as u32 - 1);
        assert_eq!(item(&most), Ok(Found::Whole(most.len())));
        assert_eq!(why(&array(MAX_VALUES as u32)), TOO_MANY);
        // An array of two, one that has all that are left but two, and a map of one key.
        let with_map = |count| [&[0x82][..], &array(count), &[0xa1, 0x60, 0x01]].concat();
        let most = with_map(MAX_VALUES as u32 - 5);
        assert_eq!(item(&most), Ok(Found::Whole(most.len())));
        assert_eq!(why(&with_map(MAX_VALUES as u32 - 4)), TOO_MANY);
    }

    #[test]
    fn a_length_is_not_believed_beyond_the_bounds() {
        assert_eq!(why(&[0x5b, 0x7f, 255, 255, 255, 255, 255, 255, 255]), TOO_LONG);
        assert_eq!(why(&[0x5b, 255, 255, 255, 255, 255, 255, 255, 255]), TOO_LONG);
        assert_eq!(why(&[0x9b, 255, 255, 255, 255, 255, 255, 255, 255]), TOO_MANY);
        assert_eq!(why(&[0xb9, 1, 0]), TOO_MANY_KEYS);
        assert_eq!(why(&[0x81; MAX_DEPTH + 1]), TOO_DEEP);
        let mut nested = vec![0x81; MAX_DEPTH];
        nested.push(0);
        assert_eq!(item(&nested), Ok(Found::Whole(MAX_DEPTH + 1)));
        // Many arrays that are each within the bounds are not so together.
        let many = [0x9a, 0, 7, 255, 255].repeat(3);
        assert_eq!(why(&many), TOO_MANY);
    }

    /// A map: keys by number, each with a zero or a map.
    struct Map(Vec<(u8, Option<Map>)>);

    impl Map {
        /// One of up to `keys` keys, with maps in it. A key may come twice.
        fn random(random: &mut impl FnMut(usize) -> usize, keys: usize, depth: usize) -> Map {
            let count = random(keys + 1);
            let mut entry = |at: usize| {
                let again = random(1500) == 0;
                let key = if again { random(at + 1) } else { at };
                let inner = (depth > 0 && random(12) == 0).then(|| depth - 1);
                (key as u8, inner.map(|depth| Map::random(random, keys, depth)))
            };
            Map((0..count).map(&mut entry).collect())
        }

        fn encode(&self, to: &mut Vec<u8>) {
            match self.0.len() {
                count @ 0..=23 => to.push(0xa0 + count as u8),
                count => to.extend([0xb8, count as u8]),
            }
            for (key, inner) in &self.0 {
                // Names of several lengths, long ones too.
                let name = match key % 4 {
                    0 => format!("{key}"),
                    1 => format!("name {key}"),
                    2 => format!("a name that is longer than 23 bytes {key}"),
                    _ => format!("{key} a"),
                };
                match name.len() {
                    len @ 0..=23 => to.push(0x60 + len as u8),
                    len => to.extend([0x78, len as u8]),
                }
                to.extend(name.as_bytes());
                match inner {
                    Some(map) => map.encode(to),
                    None => to.push(0),
                }
            }
        }

        fn has_a_key_twice(&self) -> bool {
            let keys: std::collections::HashSet<u8> = self.0.iter().map(|(key, _)| *key).collect();
            let mut inner = self.0.iter().filter_map(|(_, inner)| inner.as_ref());
            keys.len() < self.0.len() || inner.any(Map::has_a_key_twice)
        }
    }

    #[test]
    fn a_key_that_comes_twice_is_found_in_any_maps() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let (mut refused, mut taken, mut longest) = (0, 0, 0);
        while refused < 60 || taken < 60 {
            let map = Map::random(&mut random, 45, 5);
            let mut bytes = Vec::new();
            map.encode(&mut bytes);
            if map.has_a_key_twice() {
                assert_eq!(why(&bytes), "key that the map has already");
                refused += 1;
            } else {
                assert_eq!(item(&bytes), Ok(Found::Whole(bytes.len())));
                taken += 1;
                longest = longest.max(bytes.len());
            }
        }
        assert!(longest > 2000, "the maps are too small: {longest}");
    }

    #[test]
    fn a_map_has_as_many_keys_as_may_be_and_no_more() {
        let map = |keys: usize| {
            let mut bytes = vec![0xb8, keys as u8];
            (0..keys as u8).for_each(|key| bytes.extend([0x61, b'!' + key, 0]));
            bytes
        };
        assert_eq!(item(&map(MAX_KEYS)), Ok(Found::Whole(2 + 3 * MAX_KEYS)));
        assert_eq!(why(&map(MAX_KEYS + 1)), TOO_MANY_KEYS);
    }

    #[test]
    fn more_keys_than_are_kept_near_are_told_apart() {
        // Eleven maps in one another, each with ten keys before the next.
        let mut bytes = Vec::new();
        for _ in 0..11 {
            bytes.push(0xab);
            (0..10u8).for_each(|key| bytes.extend([0x61, b'a' + key, 0]));
            bytes.extend([0x61, b'z']);
        }
        bytes.push(0);
        assert_eq!(item(&bytes), Ok(Found::Whole(bytes.len())));
        let last = bytes.len() - 2;
        bytes[last] = b'a';
        assert_eq!(why(&bytes), "key that the map has already");
    }
}
