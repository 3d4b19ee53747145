//! Real images are checked against the grammar of fdimage(5) with code that is not ours; and every
//! kind is named wherever kinds are named.

use crate::harness::{Scratch, Target, image, pipeline, scan, show, terminal};
use crate::kinds::{CASES, PLACES, at};
use cddl_cat::validate_cbor_bytes;
use ciborium::Value;
use fdkit::filter::Filter;
use std::collections::{BTreeMap, BTreeSet};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../man/fdimage.5");
    std::fs::read_to_string(path).expect("fdimage.5")
}

/// The first column of the table of kinds in the README.
fn readme() -> String {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"));
    let text = text.expect("README.md");
    let rows = text.lines().filter(|line| line.starts_with("| "));
    rows.map(|row| row.split('|').nth(1).unwrap_or_default()).collect()
}

/// The grammar in the page, without the tag of the first item, which is checked separately.
fn grammar() -> String {
    let page = page();
    let (_, from) = page.split_once(".Bd -literal\n").expect("a display");
    let (grammar, _) = from.split_once(".Ed").expect("its end");
    grammar.replace("first = #6.55799(head)\n", "")
}

fn valid(rule: &str, grammar: &str, value: &Value) -> Result<(), String> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("encodes");
    validate_cbor_bytes(rule, grammar, &bytes).map_err(|err| format!("{rule}: {err}: {value:?}"))
}

fn get<'a>(map: &'a Value, key: &str) -> Option<&'a Value> {
    let pairs = map.as_map()?;
    pairs.iter().find(|(each, _)| each.as_text() == Some(key)).map(|(_, value)| value)
}

/// Checks each item of an image, and the body of each file by the rule of its kind.
fn judge(file: &str, grammar: &str) -> Result<(), String> {
    let bytes = std::fs::read(file).expect("an image");
    let mut rest = bytes.as_slice();
    let first: Value = ciborium::from_reader(&mut rest).map_err(|err| err.to_string())?;
    let Value::Tag(55799, head) = first else { return Err("no tag 55799".into()) };
    valid("head", grammar, &head)?;
    while !rest.is_empty() {
        let item: Value = ciborium::from_reader(&mut rest).map_err(|err| err.to_string())?;
        valid("item", grammar, &item)?;
        if let Some(file) = get(&item, "file") {
            let kind = get(file, "kind").and_then(Value::as_text).unwrap_or_default();
            valid(kind, grammar, get(file, "body").ok_or("a file without a body")?)?;
        }
    }
    Ok(())
}

/// Checks an image by the grammar of the page, and fails if it does not match.
pub(crate) fn judged(file: &str) {
    judge(file, &grammar()).unwrap_or_else(|err| panic!("{file}: {err}"));
}

/// Writes an image with a terminal outside the image that is replaced by a named one: the kind that
/// a process has only on a machine with a console or a serial line.
fn retargeted(scratch: &Scratch, file: &str) {
    let (slave, _master) = terminal();
    let tty = nix::unistd::ttyname(slave).expect("its name").display().to_string();
    let target = Target::make(scratch.dir(), &[&format!("tty@3:path={tty}")]).expect("no skip");
    let scan = ["fdscan", "--data", &target.pid];
    pipeline(&[&scan, &["ttyctl", "retarget", &tty], &["fdimg", "write", file]]).quiet();
}

/// The numbers at which the cases of the round trips restore each kind, and the cases that this
/// machine cannot make. All images on the way are checked against the grammar.
fn restored(grammar: &str) -> (BTreeMap<String, BTreeSet<u32>>, Vec<&'static str>) {
    let (mut numbers, mut skipped) = (BTreeMap::<String, BTreeSet<u32>>::new(), Vec::new());
    let apart = [("opaque", &["opaque@A"][..]), ("tty", &[])];
    for (name, specs) in apart.iter().chain(CASES) {
        let scratch = Scratch::new();
        let file = scratch.file("a.fdi");
        let specs: Vec<String> = specs.iter().map(|spec| at(spec, &PLACES[0])).collect();
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        match Target::make(scratch.dir(), &specs) {
            _ if specs.is_empty() => retargeted(&scratch, &file),
            Ok(target) => scan(&target.pid, &file),
            Err(_) => {
                skipped.push(*name);
                continue;
            }
        }
        judge(&file, grammar).unwrap_or_else(|err| panic!("{name}: {err}"));
        let shown = show(&file);
        for each in shown["descriptors"].as_array().expect("descriptors") {
            let kind = each["kind"].as_str().expect("a kind").to_owned();
            let letter = PLACES[0].iter().position(|&n| Some(n.into()) == each["fd"].as_u64());
            let at = letter.map(|letter| PLACES.iter().map(move |place| place[letter]));
            numbers.entry(kind).or_default().extend(at.into_iter().flatten());
        }
    }
    (numbers, skipped)
}

/// What a kind must have and lacks.
fn lacks(
    kind: &str,
    restored: &BTreeMap<String, BTreeSet<u32>>,
    page: &str,
    grammar: &str,
) -> Vec<&'static str> {
    // Nothing restores an opaque descriptor: see
    // kinds::an_opaque_descriptor_is_refused_and_can_be_left_out.
    let refused = kind == "opaque";
    let at = |n| refused || restored.get(kind).is_some_and(|at| at.contains(n));
    let has = [
        ("a fixture in mkfd, and a round trip", restored.contains_key(kind)),
        ("a round trip onto 3, 4 and 5", [3, 4, 5].iter().all(at)),
        ("a row in fdimage(5)", page.contains(&format!("\n.It Sy {kind}\n"))),
        ("a rule in its grammar", grammar.contains(&format!("\n{kind} = "))),
        ("a row in the README", readme().contains(&format!("`{kind}`"))),
        ("its name in FILTER", Filter::parse(kind, &fdkit::kind::names()).is_ok()),
    ];
    has.iter().filter(|(_, has)| !has).map(|(what, _)| *what).collect()
}

#[test]
fn images_match_the_grammar_and_every_kind_is_named_everywhere() {
    let (page, grammar) = (page(), grammar());
    let (restored, skipped) = restored(&grammar);
    let lacks = |kind| lacks(kind, &restored, &page, &grammar);
    let holes = fdkit::kind::names().into_iter().map(|kind| (kind, lacks(kind)));
    let holes = holes.filter(|(_, lacks)| !lacks.is_empty());
    // A kind that was not seen at all may be among the cases that this machine cannot make.
    let unseen = |kind: &str| !skipped.is_empty() && !restored.contains_key(kind);
    let (unseen, holes): (Vec<_>, Vec<_>) = holes.partition(|(kind, _)| unseen(kind));
    assert!(holes.is_empty(), "{holes:#?}");
    // A kind that is named nowhere lacks everything.
    assert_eq!(lacks("unheard").len(), 6);
    if !unseen.is_empty() {
        let kinds: Vec<&str> = unseen.iter().map(|(kind, _)| *kind).collect();
        skip!("{}: this machine cannot make these: {}", kinds.join(", "), skipped.join(", "));
    }
}

#[test]
fn the_grammar_does_not_match_other_data() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    for (from, to) in [("bool, file: uint", "bool, file: tstr"), ("count: uint", "count: bstr")] {
        let wrong = grammar().replace(from, to);
        assert_ne!(wrong, grammar(), "{from}");
        assert!(judge(&file, &wrong).is_err(), "{to}");
    }
}

#[test]
fn every_key_of_the_grammar_is_explained() {
    let page = page();
    let (_, text) = page.split_once(".Sh RECORDS").expect("the section");
    // `.Ql key`, `.It Li key , key` or `.Pq Li key , Dv NAME`.
    let quoted = text.lines().filter(|line| line.contains("Ql ") || line.contains("Li "));
    let explained: BTreeSet<&str> = quoted.flat_map(str::split_whitespace).collect();
    let mut grammar: String = grammar();
    // The elements of an array have no keys; those names are for the reader.
    while let Some(end) = grammar.find(']') {
        let begin = grammar[..end].rfind('[').expect("a bracket");
        grammar.replace_range(begin..=end, "");
    }
    let words = grammar.split_whitespace().filter_map(|word| word.strip_suffix(':'));
    // The keys of the records themselves are in quotation marks.
    let keys: BTreeSet<&str> = words.filter(|word| !word.starts_with('"')).collect();
    assert!(keys.len() > 100, "{keys:?}");
    let unknown: Vec<&&str> = keys.iter().filter(|key| !explained.contains(*key)).collect();
    assert!(unknown.is_empty(), "fdimage(5) does not explain {unknown:?}");
}
