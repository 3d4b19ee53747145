//! Where the next item of an image ends, and whether it keeps the rules of fdimage(5), found
//! before serde sees a byte.
//!
//! A general decoder takes more than an image may hold (floats, tags, packed structs, a key
//! twice), makes 48 bytes of one, and believes a length before it has seen the data. So nothing
//! reaches it but a slice which [`item`] called whole. What reads such a slice again ([`record`],
//! [`field`], [`entries`], [`tokens`]) relies on that for its answer but not for its safety: other
//! bytes make it end early.

use std::fmt;

/// The most bytes one item may have, the mark of the first item included.
pub const MAX_ITEM: usize = 8 << 20;

/// The most arrays and maps which may stand in one another.
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

/// What stands at the beginning of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole item, of this many bytes.
    Whole(usize),
    /// An item which is not whole yet: it has at least this many bytes in all, more than there
    /// were. A reader reads at least that many before it asks again; one that also takes what more
    /// it can get, up to twice what it has, looks at no byte more than a few times.
    Short(usize),
}

/// Why bytes are not an item of this format, and at which byte of the slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The offset in the slice.
    pub at: usize,
    /// The rule that is broken there.
    pub why: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.at, self.why)
    }
}

impl std::error::Error for Malformed {}

/// A value without what it contains, as [`tokens`] gives them.
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
    /// An array; as many values follow.
    Array(u64),
    /// A map; as many pairs of key and value follow.
    Map(u64),
    /// True or false.
    Bool(bool),
    /// Null.
    Null,
}

/// Finds the item with which `buf` begins.
pub fn item(buf: &[u8]) -> Result<Found, Malformed> {
    scan(buf, 0)
}

/// Finds the first item of an image: the same, after [`MARK`], which its length includes.
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
/// `whole` is exactly one item, without [`MARK`]. None if it is not a map of one text key.
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
/// This is how a body which is bytes already gets into a record: serde writes the record with
/// fewer than 23 entries, so that its first byte holds the count, and the body follows. Any other
/// `map` stays as it is, and a debug build panics.
pub fn push_field(map: &mut Vec<u8>, key: &str, raw: &[u8]) {
    let Some(count @ 0xa0..=0xb6) = map.first_mut() else {
        debug_assert!(false, "push_field: not a map of fewer than 23 entries");
        return;
    };
    *count += 1;
    let len = key.len() as u64;
    match len {
        0..=23 => map.push(0x60 | len as u8),
        24..=0xff => map.extend([0x78, len as u8]),
        0x100..=0xffff => {
            map.push(0x79);
            map.extend((len as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            map.push(0x7a);
            map.extend((len as u32).to_be_bytes());
        }
        _ => {
            map.push(0x7b);
            map.extend(len.to_be_bytes());
        }
    }
    map.extend_from_slice(key.as_bytes());
    map.extend_from_slice(raw);
}

/// The tokens of checked bytes, one item or several, outermost first.
pub fn tokens(buf: &[u8]) -> impl Iterator<Item = Token<'_>> {
    let mut rest = buf;
    std::iter::from_fn(move || {
        let (token, len) = token(rest).ok()?;
        rest = rest.get(len..)?;
        Some(token)
    })
    .fuse()
}

/// Why there is no token.
enum Incomplete {
    /// The token has at least this many bytes, and there are fewer.
    Short(usize),
    Malformed(Malformed),
}

fn refuse<T>(at: usize, why: &'static str) -> Result<T, Incomplete> {
    Err(Incomplete::Malformed(Malformed { at, why }))
}

/// The first byte of a value, its argument, and how many bytes the two take.
///
/// The only place that knows how CBOR is laid out and what of it an image leaves out.
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
        31 if first >= 0x40 => return refuse(0, "indefinite length"),
        _ => return refuse(0, "reserved kind of head"),
    };
    match arg {
        None => Err(Incomplete::Short(len)),
        Some(arg) if arg >= least => Ok((first, arg, len)),
        Some(_) if first < 0x40 => refuse(0, "integer not in its shortest form"),
        Some(_) => refuse(0, "length not in its shortest form"),
    }
}

#[inline(always)]
fn wide<const N: usize>(rest: &[u8]) -> Option<[u8; N]> {
    rest.first_chunk().copied()
}

/// A value as it stands in the stream: its first byte, its argument, the bytes of a string, and the
/// length of all that.
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

/// The length of the item with which checked bytes begin; none if it is not whole.
pub(super) fn span(buf: &[u8]) -> Option<usize> {
    let (mut at, mut owed) = (0, 1u64);
    while owed > 0 {
        let (first, arg, head) = head(buf.get(at..)?).ok()?;
        owed -= 1;
        at += head;
        match first >> 5 {
            2 | 3 => at = at.checked_add(usize::try_from(arg).ok()?)?,
            4 => owed = owed.checked_add(arg)?,
            5 => owed = owed.checked_add(arg.checked_mul(2)?)?,
            _ => (),
        }
    }
    (at <= buf.len()).then_some(at)
}

/// An array or a map which is not complete yet.
#[derive(Clone, Copy)]
struct Container {
    /// The values still to come, keys included: in a map, an even number of them begins with a key.
    left: usize,
    map: bool,
    /// How many keys of the maps around it are kept.
    keys: usize,
}

fn scan(buf: &[u8], from: usize) -> Result<Found, Malformed> {
    // The item itself is the only element of an array around it.
    let mut top = Container { left: 1, map: false, keys: 0 };
    let mut around = [top; MAX_DEPTH];
    let mut depth = 0;
    let mut keys = Keys::new();
    let mut at = from;
    // What must still come, in all that is open, and all that was announced since the beginning.
    let (mut owed, mut values) = (1, 1);
    loop {
        let rest = &buf[at..];
        let key = top.map && top.left % 2 == 0;
        if key && rest.first().is_some_and(|first| first >> 5 != 3) {
            return Err(Malformed { at, why: "key that is not text" });
        }
        top.left -= 1;
        owed -= 1;
        // Most text is ASCII, which is found out faster than that it is UTF-8.
        let checked = raw(rest).and_then(|found| match found {
            (first, _, bytes, len) if first >> 5 == 3 && !bytes.is_ascii() => {
                text(bytes, len).map(|_| found)
            }
            _ => Ok(found),
        });
        let (major, count, len) = match checked {
            Ok((first, arg, _, len)) => (first >> 5, arg, len),
            Err(Incomplete::Malformed(bad)) => return Err(Malformed { at: at + bad.at, ..bad }),
            Err(Incomplete::Short(len)) if at + len + owed <= MAX_ITEM => {
                return Ok(Found::Short(at + len + owed));
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
            if count > MAX_VALUES as u64 {
                return bad(TOO_MANY);
            }
            if depth == MAX_DEPTH {
                return bad(TOO_DEEP);
            }
            let left = count as usize * if map { 2 } else { 1 };
            owed += left;
            values += left;
            if values > MAX_VALUES {
                return bad(TOO_MANY);
            }
            around[depth] = top;
            depth += 1;
            top = Container { left, map, keys: keys.len };
        }
        if at + owed > MAX_ITEM {
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

/// How many keys are kept without allocation; more are open at once in no record that fdkit writes.
const NEAR: usize = 64;

/// The keys of all open maps, innermost last. A key is kept as where it begins, and in the low
/// bits a print of it, so that keys are hardly ever compared byte by byte unless they are equal.
struct Keys {
    near: [u32; NEAR],
    far: Vec<u32>,
    len: usize,
}

const PRINT: u32 = (1 << 9) - 1;
const _: () = assert!(MAX_ITEM << 9 <= 1 << 32);

impl Keys {
    fn new() -> Self {
        Keys { near: [0; NEAR], far: Vec::new(), len: 0 }
    }

    /// Adds the key at `buf[start..end]` to the map whose keys begin with the `since`th; false if
    /// it is there already.
    #[inline(always)]
    fn add(&mut self, buf: &[u8], start: usize, end: usize, since: usize) -> bool {
        let key = &buf[start..end];
        // The first byte has the length, or says that it is long.
        let (head, last) = (u32::from(key[0]), u32::from(key[key.len() - 1]));
        let second = key.get(1).map_or(0, |&byte| u32::from(byte));
        let print = (head.wrapping_mul(37) ^ second << 4 ^ last) & PRINT;
        // No encoded key begins with another, so one that begins with this is this.
        let same =
            |&kept: &u32| kept & PRINT == print && buf[(kept >> 9) as usize..].starts_with(key);
        let near = self.len.min(NEAR);
        if self.near[since.min(near)..near].iter().any(same)
            || self.far[since.saturating_sub(NEAR)..].iter().any(same)
        {
            return false;
        }
        let kept = (start as u32) << 9 | print;
        match self.near.get_mut(self.len) {
            Some(place) => *place = kept,
            None => self.far.push(kept),
        }
        self.len += 1;
        true
    }

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
            map in prop::collection::btree_map(".{0,8}", value(), 0..20), key in ".{0,8}",
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
    fn a_length_is_not_believed_beyond_the_bounds() {
        assert_eq!(why(&[0x5b, 0x7f, 255, 255, 255, 255, 255, 255, 255]), TOO_LONG);
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
