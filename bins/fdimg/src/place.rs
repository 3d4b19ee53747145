//! fdimg place: the sizes of the descriptor tables of an image, as recorded, as needed, and as
//! forecast for each placement policy.

use crate::{CURE, TOOL, give_up_all_but};
use argh::{ArgsInfo, FromArgs};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use fdkit::cli::{self, Arg, Color, ImageInput};
use fdkit::error::{At, Result, Status};
use fdkit::image::Task;
use fdkit::kind::DecodedImage;
use fdkit::placement::{self, Placement, Size};
use fdkit::sandbox::Needs;
use fdkit::table::services::limits_for;
use fdkit::text::escape;
use fdkit::tree::Tree;
use serde_json::{Map, Value, json};
use std::io::Write;

/// The number of service descriptors of a task, which is one: the fdstore.
const SERVICES: usize = 1;

/// Show the sizes of the descriptor tables of an image, as recorded and after fdrestore --tree.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "place")]
pub(crate) struct Args {
    /// show bytes of kernel memory instead of slots
    #[argh(switch, short = 'b')]
    bytes: bool,
    /// RLIMIT_NOFILE where the image will be restored (default: that of this process)
    #[argh(option, arg_name = "N")]
    limit: Option<u32>,
    /// print one JSON document
    #[argh(switch, short = 'J')]
    json: bool,
    /// colours: auto (on a terminal), always or never
    #[argh(option, arg_name = "auto|always|never", default = "Color::Auto")]
    color: Color,
    /// say what fdimg gives up before it reads the image
    #[argh(switch, short = 'v')]
    verbose: bool,
    /// the image; stdin if - or left out
    #[argh(positional, arg_name = "FILE")]
    file: Option<Arg>,
}

/// A line of the output: a task and its table.
struct Row<'a> {
    task: &'a Task,
    /// The pid of the owner of the table, if that is another task (CLONE_FILES).
    shares: Option<i32>,
    descriptors: usize,
    highest: Option<u32>,
    /// The slots that the kernel needs for the highest number.
    needed: u64,
    /// The forecast for each of [`Placement::ALL`]; none where the limit leaves no room.
    sizes: Vec<Option<Size>>,
}

/// The unit of the output: maps slots to slots, or to bytes.
type Measure = fn(u64) -> u64;

pub(crate) fn run(args: &Args) -> Result<Status> {
    let input = ImageInput::new(args.file.as_ref());
    let from = input.open(&TOOL, CURE)?;
    give_up_all_but(Needs::Descriptors, args.verbose);
    let name = || input.to_string();
    let image = DecodedImage::load(from).at(name)?;
    let tree = Tree::unchecked(&image).at(name)?;
    let table_plans = tree.table_plans(SERVICES);
    let limit = match args.limit {
        Some(limit) => limit,
        None => limits_for(tree.highest_number())?.1.min(u32::MAX.into()) as u32,
    };
    let forecasts = Placement::ALL.map(|policy| placement::forecast(policy, &table_plans, limit));
    let row = |(place, &at): (usize, &usize)| {
        let owner = tree.shape.nodes[at].owner;
        let numbers = &table_plans[table_plans[place].owner.unwrap_or(place)].numbers;
        Row {
            task: &image.tasks[at],
            shares: (owner != at).then(|| image.tasks[owner].pid),
            descriptors: numbers.len(),
            highest: numbers.last().copied(),
            needed: placement::capacity(numbers.last().copied()),
            sizes: forecasts.iter().map(|sizes| sizes[place]).collect(),
        }
    };
    let rows: Vec<Row<'_>> = tree.shape.order.iter().enumerate().map(row).collect();
    let text = match args.json {
        true => document(&rows, limit),
        false => {
            table(&rows, if args.bytes { placement::bytes } else { |slots| slots }, args.color)
        }
    };
    cli::text_stdout()?.write_all(text.as_bytes())?;
    Ok(Status::Done)
}

/// The sums of what is recorded, of what is needed, and of the forecast for each policy, each table
/// counted once. A sum with a forecast that is not known is not known.
fn sums(rows: &[Row<'_>], measure: Measure) -> (u64, u64, Vec<Option<u64>>) {
    let tables = || rows.iter().filter(|row| row.shares.is_none());
    let of = |policy: usize| tables().map(|row| Some(measure(row.sizes[policy]?.end))).sum();
    (
        tables().map(|row| measure(row.task.table.capacity.into())).sum(),
        tables().map(|row| measure(row.needed)).sum(),
        (0..Placement::ALL.len()).map(of).collect(),
    )
}

fn table(rows: &[Row<'_>], measure: Measure, color: Color) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let policies = Placement::ALL.iter().map(|policy| policy.name().to_uppercase());
    let head = ["PID", "COMMAND", "FDS", "HIGHEST", "FDSIZE", "NEEDED"].map(str::to_owned);
    table.set_header(head.into_iter().chain(policies));
    // A mark stands behind a table that is larger than needed.
    let marked = |slots: u64, needed: u64| {
        let mark = if slots > needed { "!" } else { " " };
        format!("{}{mark}", measure(slots))
    };
    for row in rows {
        let mut cells = vec![row.task.pid.to_string(), escape(&row.task.comm.0).into_owned()];
        match row.shares {
            Some(owner) => cells.push(format!("={owner}")),
            None => {
                cells.push(row.descriptors.to_string());
                cells.push(row.highest.map_or("-".into(), |highest| highest.to_string()));
                cells.push(marked(row.task.table.capacity.into(), row.needed));
                cells.push(format!("{} ", measure(row.needed)));
                cells.extend(row.sizes.iter().map(|size| match size {
                    Some(Size { peak, end }) if peak > end => {
                        format!("({}) {}", measure(*peak), marked(*end, row.needed))
                    }
                    Some(Size { end, .. }) => marked(*end, row.needed),
                    None => "- ".to_owned(),
                }));
            }
        }
        table.add_row(cells);
    }
    let (recorded, needed, policies) = sums(rows, measure);
    let known = [Some(recorded), Some(needed)].into_iter().chain(policies);
    let known = known.map(|sum| sum.map_or("- ".to_owned(), |sum| format!("{sum} ")));
    let head = ["", "SUM", "", ""].map(str::to_owned);
    table.add_row(head.into_iter().chain(known));
    for column in table.column_iter_mut().filter(|column| column.index != 1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let (color, width) = (color.on(), cli::terminal_width());
    let mut out = String::new();
    for (at, line) in table.lines().enumerate() {
        let row = at.checked_sub(1).and_then(|at| rows.get(at));
        let bloated = |row: &Row<'_>| u64::from(row.task.table.capacity) > row.needed;
        let style = match (color, at) {
            (false, _) => "",
            (true, 0) => "2",
            (true, _) if row.is_none() => "1",
            (true, _) => row.filter(|row| bloated(row)).map_or("", |_| "33"),
        };
        crate::show::push_line(&mut out, line.trim_end(), width, style);
    }
    out
}

fn document(rows: &[Row<'_>], limit: u32) -> String {
    let table = |slots: u64| json!({"slots": slots, "bytes": placement::bytes(slots)});
    let policies = |of: &dyn Fn(usize) -> Value| -> Map<String, Value> {
        let policies = Placement::ALL.iter().enumerate();
        policies.map(|(at, policy)| (policy.name().to_owned(), of(at))).collect()
    };
    let task = |row: &Row<'_>| {
        let forecast = policies(&|at| match row.sizes[at] {
            Some(size) => json!({"peak": table(size.peak), "end": table(size.end)}),
            None => Value::Null,
        });
        let recorded = u64::from(row.task.table.capacity);
        json!({
            "pid": row.task.pid, "comm": escape(&row.task.comm.0), "shares": row.shares,
            "descriptors": row.descriptors, "highest": row.highest,
            "recorded": table(recorded), "needed": table(row.needed),
            "bloated": recorded > row.needed, "forecast": forecast,
        })
    };
    let both = |slots: Option<u64>, bytes: Option<u64>| json!({"slots": slots, "bytes": bytes});
    let (recorded, needed, ends) = sums(rows, |slots| slots);
    let in_bytes = sums(rows, placement::bytes);
    let document = json!({
        "limit": limit,
        "tasks": rows.iter().map(task).collect::<Vec<_>>(),
        "sums": {
            "recorded": both(Some(recorded), Some(in_bytes.0)),
            "needed": both(Some(needed), Some(in_bytes.1)),
            "forecast": policies(&|at| both(ends[at], in_bytes.2[at])),
        },
    });
    format!("{document:#}\n")
}
