//! A sweep in the terminal: a table, and two curves.

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use textplots::{Chart, LabelBuilder, LabelFormat, Plot, Shape};

use super::report::AppendReport;
use super::sweep::Sweep;

/// Size of a chart in dots; a character is two by four.
const CHART_DOTS: (u32, u32) = (140, 60);

/// The whole text.
pub(super) fn text(sweep: &Sweep) -> String {
    let part = |title: &str, figure: fn(&AppendReport) -> f64| {
        let order = order(sweep, figure);
        format!("{title} over writers{order}\n{}", chart(sweep, figure))
    };
    format!(
        "{}\n\n{}\n{}",
        table(sweep),
        part("appends/s", |cell| cell.appends_per_s.0),
        part("appends for each fsync", |cell| cell.appends_per_fsync.0),
    )
}

/// Which line is which, where there are several.
fn order(sweep: &Sweep, figure: impl Fn(&AppendReport) -> f64) -> String {
    let groups = sweep.groups().into_iter();
    let ends = groups.filter_map(|groups| Some((figure(sweep.row(groups).last()?), groups)));
    let mut ends: Vec<(f64, u32)> = ends.collect();
    ends.sort_by(|a, b| b.0.total_cmp(&a.0));
    let names: Vec<String> = ends.iter().map(|(_, groups)| groups.to_string()).collect();
    match &names[..] {
        [] | [_] => String::new(),
        names => format!(
            "; at the right end, from the top: {} groups",
            names.join(", ")
        ),
    }
}

fn table(sweep: &Sweep) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "WRITERS",
        "GROUPS",
        "APPENDS/S",
        "OF A BARE FILE",
        "APPENDS/FSYNC",
        "P50 µs",
        "P99 µs",
        "BYTES/APPEND",
    ]);
    for cell in &sweep.cells {
        let raw = sweep.raw.iter().find(|raw| raw.writers == cell.writers);
        let share = raw.map_or_else(String::new, |raw| {
            format!("{:.0} %", cell.appends_per_s.0 / raw.appends_per_s * 100.0)
        });
        table.add_row([
            cell.writers.to_string(),
            cell.groups.to_string(),
            format!("{:.0}", cell.appends_per_s.0),
            share,
            format!("{:.1}", cell.appends_per_fsync.0),
            format!("{:.0}", cell.latency_us.p50.0),
            format!("{:.0}", cell.latency_us.p99.0),
            format!("{:.0}", cell.log_bytes_per_append.0),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Curves over the logarithm of the number of threads.
fn chart(sweep: &Sweep, figure: impl Fn(&AppendReport) -> f64) -> String {
    let writers = sweep.writers();
    let (Some(first), Some(last)) = (writers.first(), writers.last()) else {
        return String::new();
    };
    if first == last {
        return "one point is no curve\n".to_owned();
    }
    let curves: Vec<Vec<(f32, f32)>> = sweep
        .groups()
        .into_iter()
        .map(|groups| {
            let row = sweep.row(groups);
            row.map(|cell| (place(cell.writers), narrow(figure(cell))))
                .collect()
        })
        .collect();
    let highest = curves
        .iter()
        .flatten()
        .map(|point| point.1)
        .fold(1.0, f32::max);
    let shapes: Vec<Shape<'_>> = curves.iter().map(|curve| Shape::Lines(curve)).collect();
    let (width, height) = CHART_DOTS;
    let mut chart =
        Chart::new_with_y_range(width, height, place(*first), place(*last), 0.0, highest);
    let label = |value: f32| format!("{value:.0}");
    let mut drawn = chart
        .x_label_format(LabelFormat::Custom(Box::new(|log| {
            format!("{:.0}", log.exp2())
        })))
        .y_label_format(LabelFormat::Custom(Box::new(label)));
    for shape in &shapes {
        drawn = drawn.lineplot(shape);
    }
    drawn.axis();
    drawn.figures();
    drawn.to_string()
}

fn place(writers: u32) -> f32 {
    narrow(f64::from(writers).log2())
}

#[expect(clippy::cast_possible_truncation, reason = "dots need no more figures")]
fn narrow(figure: f64) -> f32 {
    figure as f32
}
