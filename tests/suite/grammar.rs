//! Real images against the grammar of fdimage(5), decoded and judged by others' code; and every
//! kind has its place wherever kinds are named.

use crate::harness::{Scratch, Target, image, pipeline, scan, show, terminal};
use crate::kinds::{CASES, at};
use cddl_cat::validate_cbor_bytes;
use ciborium::Value;
use fdkit::filter::Filter;
use std::collections::BTreeSet;

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../man/fdimage.5");
    std::fs::read_to_string(path).expect("fdimage.5")
}

/// The grammar as it is printed, without the tag of the first item, which is looked at apart.
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

/// Judges each item of an image, and the body of each file by the rule of its kind.
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

/// The slave alone, which is another terminal now.
fn retarget(pid: &str, file: &str) {
    let (slave, _master) = terminal();
    let tty = nix::unistd::ttyname(slave).expect("its name").display().to_string();
    let stages: &[&[&str]] =
        &[&["fdscan", "-F", "4", pid], &["ttyctl", "retarget", &tty], &["fdimg", "write", file]];
    pipeline(stages).quiet();
}

#[test]
fn images_are_as_the_grammar_says_and_every_kind_is_among_them() {
    let grammar = grammar();
    let mut seen = BTreeSet::new();
    let opaque = ("what no kind knows", &["opaque@A"][..]);
    let elsewhere = ("a terminal from elsewhere", &["pty@A,B"][..]);
    for (name, specs) in CASES.iter().chain([&opaque, &elsewhere]) {
        let scratch = Scratch::new();
        let specs: Vec<String> = specs.iter().map(|spec| at(spec, &[3, 4, 5, 6])).collect();
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        let Ok(target) = Target::make(scratch.dir(), &specs) else { continue };
        let file = scratch.file("a.fdi");
        match *name {
            "a terminal from elsewhere" => retarget(&target.pid, &file),
            _ => scan(&target.pid, &file),
        }
        judge(&file, &grammar).unwrap_or_else(|err| panic!("{name}: {err}"));
        let shown = show(&file);
        let kinds = shown["descriptors"].as_array().expect("descriptors");
        seen.extend(kinds.iter().filter_map(|each| Some(each["kind"].as_str()?.to_owned())));
    }
    let missing: Vec<&str> =
        fdkit::kind::names().into_iter().filter(|name| !seen.contains(*name)).collect();
    // What this machine cannot make is skipped, visibly, by the round trips themselves.
    assert!(missing.is_empty(), "no case has a descriptor of kind {missing:?}");
}

#[test]
fn the_grammar_refuses_what_is_not_an_image() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    for (from, to) in [("bool, file: uint", "bool, file: tstr"), ("count: uint", "count: bstr")] {
        let wrong = grammar().replace(from, to);
        assert_ne!(wrong, grammar(), "{from}");
        assert!(judge(&file, &wrong).is_err(), "{to}");
    }
}

#[test]
fn every_kind_has_its_row_its_rule_and_its_filter() {
    let (page, grammar) = (page(), grammar());
    let names = fdkit::kind::names();
    for name in &names {
        assert!(page.contains(&format!("\n.It Sy {name}\n")), "fdimage.5 has no row {name}");
        assert!(grammar.contains(&format!("\n{name} = ")), "the grammar has no rule {name}");
        assert!(Filter::parse(name, &names).is_ok(), "{name} is no filter");
    }
}
