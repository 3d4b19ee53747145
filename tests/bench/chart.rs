//! The chart in the README, drawn from the numbers of the benchmark: slots of a task's table over
//! its highest number, and the kernel memory of the tree with a large parent. Plain SVG, for light
//! and dark pages.

use fdkit::placement::Placement;
use serde_json::Value;
use std::fmt::Write as _;

/// The meaning of a policy in the legend. One that is not here is drawn with its name alone.
const MEANINGS: [(Placement, &str); 4] = [
    (Placement::Rlimit, "below the limit of open files"),
    (Placement::Task, "above the task's own numbers"),
    (Placement::Late, "low, all else is moved at the end"),
    (Placement::Tight, "in the holes of the smallest table"),
];

/// The colours of the policies, in the order of [`Placement::ALL`], on light and on dark pages. The
/// last two are for policies to come.
const COLOURS: [(&str, &str); 6] = [
    ("#cf222e", "#ff7b72"),
    ("#bc6c00", "#e3b341"),
    ("#54aeff", "#1f6feb"),
    ("#1a7f37", "#56d364"),
    ("#8250df", "#d2a8ff"),
    ("#bf3989", "#ff9bce"),
];

/// The names of the policies, in the order in which they are drawn.
fn policies() -> impl Iterator<Item = &'static str> + Clone {
    Placement::ALL.into_iter().map(Placement::name)
}

/// The style sheet, with a colour for each policy.
fn style() -> String {
    let lines = |dark: bool| -> String {
        let rule = |(name, (on_light, on_dark)): (&str, &(&str, &str))| {
            format!(".{name}{{stroke:{}}}", if dark { on_dark } else { on_light })
        };
        policies().zip(&COLOURS).map(rule).collect()
    };
    let bars = |dark: bool| -> String {
        let rule = |(name, (on_light, on_dark)): (&str, &(&str, &str))| {
            format!(".bar.{name}{{fill:{}}}", if dark { on_dark } else { on_light })
        };
        policies().zip(&COLOURS).map(rule).collect()
    };
    format!(
        "text{{font:13px system-ui,sans-serif;fill:#1f2328}}.soft{{fill:#59636e}}\
         .head{{font-weight:600}}.right{{text-anchor:end}}.mid{{text-anchor:middle}}\
         .grid{{stroke:#d1d9e0;stroke-width:1}}\
         .line{{fill:none;stroke-width:3;stroke-linecap:round;stroke-linejoin:round}}\
         {}.bar{{stroke:none}}.bar.before{{fill:#8c959f}}{}.wide{{stroke-width:8}}\
         @media(prefers-color-scheme:dark){{text{{fill:#e6edf3}}.soft{{fill:#9198a1}}\
         .grid{{stroke:#3d444d}}{}.bar{{stroke:none}}.bar.before{{fill:#656c76}}{}}}",
        lines(false),
        bars(false),
        lines(true),
        bars(true)
    )
}

/// The coordinates of the left panel, and of the bars.
const LEFT: f64 = 62.0;
const TOP: f64 = 64.0;
const WIDTH: f64 = 470.0;
const HEIGHT: f64 = 270.0;
const BARS: f64 = 672.0;
const LONGEST: f64 = 190.0;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

/// The trees whose tasks all have the same highest number, for the largest number of tasks.
fn sweep(figures: &Value) -> Vec<&Value> {
    let trees = || figures["trees"].as_array().into_iter().flatten();
    let flat = |tree: &&Value| tree["later"].as_array().is_some_and(Vec::is_empty);
    let most = trees().filter(flat).map(|tree| number(&tree["tasks"])).fold(0.0, f64::max);
    trees().filter(flat).filter(|tree| number(&tree["tasks"]) == most).collect()
}

/// The tree whose parent opened all of the high numbers.
fn big(figures: &Value) -> Option<&Value> {
    let trees = figures["trees"].as_array()?;
    let later = |tree: &Value| tree["later"].as_array().map_or(0, Vec::len);
    trees.iter().max_by_key(|tree| later(tree)).filter(|tree| later(tree) > 0)
}

/// The numbers of the benchmark as SVG.
pub(crate) fn draw(figures: &Value) -> String {
    let mut out = String::new();
    let style = style();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 920 420\" role=\"img\">\n\
         <title>What the tables of a restored tree take, by the place of the restorer's own \
         descriptors</title>\n<style>{style}</style>\n"
    );
    slots(&mut out, &sweep(figures));
    if let Some(tree) = big(figures) {
        bars(&mut out, tree);
    }
    legend(&mut out);
    out + "</svg>\n"
}

fn text(out: &mut String, x: f64, y: f64, class: &str, words: &str) {
    let _ = writeln!(out, "<text x=\"{x:.0}\" y=\"{y:.0}\" class=\"{class}\">{words}</text>");
}

/// Draws the slots of a table after the restore, for each highest number.
fn slots(out: &mut String, trees: &[&Value]) {
    text(out, LEFT - 46.0, 24.0, "head", "Slots of a task's table after the restore");
    text(out, LEFT - 46.0, 42.0, "soft", "by its highest descriptor");
    let y = |slots: f64| TOP + HEIGHT * (1.0 - (slots.log2() - 6.0) / 9.0);
    for slots in [64, 256, 1024, 4096, 16384] {
        let at = y(slots.into());
        let right = LEFT + WIDTH;
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"grid\"/>"
        );
        text(out, LEFT - 8.0, at + 4.0, "soft right", &slots.to_string());
    }
    let step = WIDTH / trees.len().max(1) as f64;
    for (at, tree) in trees.iter().enumerate() {
        let highest = &tree["highest"];
        if [3, 63, 127, 255, 511, 1023, 4095].iter().any(|shown| highest == shown) {
            let x = LEFT + step * (at as f64 + 0.5);
            text(out, x, TOP + HEIGHT + 20.0, "soft mid", &highest.to_string());
        }
    }
    for policy in policies() {
        let mut path = String::new();
        for (at, tree) in trees.iter().enumerate() {
            let x = LEFT + step * at as f64;
            let height = y(number(&tree["restored"][policy]["parent"]));
            let begin = if at == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{begin}{x:.1} {height:.1}H{:.1}", x + step);
        }
        // Where two lines coincide, the wider one shows behind the other.
        let wide = if policy == "late" { " wide" } else { "" };
        let _ = writeln!(out, "<path d=\"{path}\" class=\"line {policy}{wide}\"/>");
    }
}

/// Draws the kernel memory of the tree with the large parent, or the bytes of its tables if there
/// is no cgroup.
fn bars(out: &mut String, tree: &Value) {
    let children = number(&tree["tasks"]) - 1.0;
    let counted = tree["before"]["kernel"].is_number();
    let what = if counted { "kernel" } else { "bytes" };
    let head = match counted {
        true => "Kernel memory, MB",
        false => "Bytes of tables, MB",
    };
    text(out, BARS - 66.0, 24.0, "head", head);
    let line = format!("of a big parent and {children} small children");
    text(out, BARS - 66.0, 42.0, "soft", &line);
    let value = |name: &str| match name {
        "before" => number(&tree["before"][what]),
        policy => number(&tree["restored"][policy][what]),
    };
    let names = ["before"].into_iter().chain(policies());
    let most = names.clone().map(value).fold(1.0, f64::max);
    for (at, name) in names.enumerate() {
        let top = TOP + 8.0 + 52.0 * at as f64;
        let length = LONGEST * value(name) / most;
        text(out, BARS - 8.0, top + 21.0, "right", name);
        let _ = writeln!(
            out,
            "<rect x=\"{BARS}\" y=\"{top}\" width=\"{length:.1}\" height=\"32\" rx=\"3\" \
             class=\"bar {name}\"/>"
        );
        let shown = format!("{:.1}", value(name) / 1e6);
        text(out, BARS + length + 8.0, top + 21.0, "soft", &shown);
    }
}

fn legend(out: &mut String) {
    for (at, policy) in Placement::ALL.into_iter().enumerate() {
        let meaning = MEANINGS.iter().find(|(each, _)| *each == policy).map(|(_, words)| *words);
        let (x, y) = (LEFT + 240.0 * (at % 2) as f64, 380.0 + 22.0 * (at / 2) as f64);
        let x = if at % 2 == 1 { x + 70.0 } else { x };
        let _ = writeln!(
            out,
            "<path d=\"M{:.0} {:.0}h18\" class=\"line {policy}\"/>",
            x - 40.0,
            y - 4.0
        );
        let words = meaning.map(|words| format!(": <tspan class=\"soft\">{words}</tspan>"));
        text(out, x - 14.0, y, "", &format!("{policy}{}", words.unwrap_or_default()));
    }
}
