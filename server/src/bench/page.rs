//! A sweep as one page for a browser: curves, a table and the data; nothing is loaded from anywhere.

use std::fmt::Write as _;

use plotters::prelude::*;

use super::BenchError;
use super::report::AppendReport;
use super::sweep::Sweep;

const CHART_PIXELS: (u32, u32) = (720, 400);
const LABEL_PIXELS: u32 = 14;
/// A colour for each number of groups; they begin anew if there are more.
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
];
const STYLE: &str = "body{font:15px sans-serif;max-width:1500px;margin:2em auto;padding:0 1em;\
    background:#fff;color:#222}figure{display:inline-block;margin:0 1em 1em 0}svg{max-width:100%;\
    height:auto}table{border-collapse:collapse}th,td{padding:.2em .8em;text-align:right;\
    border-bottom:1px solid #ddd}";

struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

/// The page.
pub(super) fn page(sweep: &Sweep) -> Result<String, BenchError> {
    let data = serde_json::to_string(&sweep.cells);
    let data = data.map_err(|error| BenchError::Drawing(error.to_string()))?;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>multiraft bench log append</title><style>{STYLE}</style></head><body>\n\
         <h1>Appends to the log</h1>\n<p>{}</p>\n",
        description(sweep)
    );
    let mut rates = curves(sweep, |cell| cell.appends_per_s.0);
    if !sweep.raw.is_empty() {
        let raw = sweep.raw.iter();
        rates.push(Curve {
            name: "a bare file".to_owned(),
            points: raw
                .map(|raw| (f64::from(raw.writers), raw.appends_per_s))
                .collect(),
        });
    }
    for (title, legend, curves) in [
        ("Appends per second", SeriesLabelPosition::UpperLeft, rates),
        (
            "Appends for each fsync",
            SeriesLabelPosition::UpperLeft,
            curves(sweep, |cell| cell.appends_per_fsync.0),
        ),
        (
            "Median latency of an append, µs",
            SeriesLabelPosition::UpperLeft,
            curves(sweep, |cell| cell.latency_us.p50.0),
        ),
        (
            "99th percentile of the latency, µs",
            SeriesLabelPosition::UpperLeft,
            curves(sweep, |cell| cell.latency_us.p99.0),
        ),
        (
            "Bytes written to the log for each append",
            SeriesLabelPosition::UpperRight,
            curves(sweep, |cell| cell.log_bytes_per_append.0),
        ),
    ] {
        let svg = svg(title, legend, &curves).map_err(BenchError::Drawing)?;
        append(&mut page, format_args!("<figure>{svg}</figure>\n"));
    }
    append_table(&mut page, sweep);
    append(
        &mut page,
        format_args!(
            "<script type=\"application/json\" id=\"data\">{data}</script>\n</body></html>\n"
        ),
    );
    Ok(page)
}

fn append(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("a String takes all");
}

fn description(sweep: &Sweep) -> String {
    sweep.cells.first().map_or_else(String::new, |cell| {
        format!(
            "Threads (writers) append {} entries of {} bytes to their groups in turn, and each waits \
             until its append is durable. {} s for each point; both axes are logarithmic.",
            cell.batch, cell.payload, cell.seconds.0
        )
    })
}

/// A curve for each number of groups.
fn curves(sweep: &Sweep, figure: impl Fn(&AppendReport) -> f64) -> Vec<Curve> {
    let curve = |groups| {
        let row = sweep.row(groups);
        let points = row.map(|cell| (f64::from(cell.writers), figure(cell)));
        Curve {
            name: match groups {
                1 => "1 group".to_owned(),
                _ => format!("{groups} groups"),
            },
            points: points
                .filter(|point| point.1 > 0.0 && point.1.is_finite())
                .collect(),
        }
    };
    sweep.groups().into_iter().map(curve).collect()
}

fn svg(title: &str, legend: SeriesLabelPosition, curves: &[Curve]) -> Result<String, String> {
    let mut svg = String::new();
    draw(&mut svg, title, legend, curves).map_err(|error| error.to_string())?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    title: &str,
    legend: SeriesLabelPosition,
    curves: &[Curve],
) -> Result<(), Box<dyn std::error::Error>> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let (lowest, highest) = range(points().map(|point| point.1));
    let (fewest, most) = range(points().map(|point| point.0));
    let area = SVGBackend::with_string(svg, CHART_PIXELS).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(10)
        .margin_right(25)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(
            (fewest..most).log_scale().base(2.0),
            (lowest / 1.2..highest * 1.2).log_scale(),
        )?;
    let font = ("sans-serif", LABEL_PIXELS);
    chart
        .configure_mesh()
        .x_desc("writers")
        .label_style(font)
        .x_label_formatter(&|writers| format!("{writers:.0}"))
        .y_label_formatter(&|figure| format!("{figure:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for (nth, curve) in curves.iter().enumerate() {
        let colour = COLOURS[nth % COLOURS.len()];
        let line = LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(line.point_size(3))?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(font)
        .draw()?;
    area.present()?;
    Ok(())
}

/// Smallest and largest, not the same.
fn range(figures: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = figures.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), figure| {
        (low.min(figure), high.max(figure))
    });
    if low.is_finite() && high.is_finite() {
        (low, high.max(low * 2.0))
    } else {
        (1.0, 2.0)
    }
}

fn append_table(page: &mut String, sweep: &Sweep) {
    append(
        page,
        format_args!(
            "<table><tr><th>writers<th>groups<th>appends/s<th>appends/fsync<th>p50 µs<th>p99 µs\
             <th>p99.9 µs<th>max µs<th>bytes/append<th>CPU s/million</tr>\n"
        ),
    );
    for cell in &sweep.cells {
        let latency = &cell.latency_us;
        append(
            page,
            format_args!(
                "<tr><td>{}<td>{}<td>{:.0}<td>{:.1}<td>{:.0}<td>{:.0}<td>{:.0}<td>{:.0}<td>{:.0}\
                 <td>{:.1}</tr>\n",
                cell.writers,
                cell.groups,
                cell.appends_per_s.0,
                cell.appends_per_fsync.0,
                latency.p50.0,
                latency.p99.0,
                latency.p999.0,
                latency.max.0,
                cell.log_bytes_per_append.0,
                cell.cpu_s_per_million_appends.0
            ),
        );
    }
    append(page, format_args!("</table>\n"));
}
