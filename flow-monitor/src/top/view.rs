//! The screen of `weir top`.

use jiff::{Timestamp, tz::TimeZone};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span, Text},
    widgets::{Block, Cell, Clear, Paragraph, Row as TableRow, Table, TableState},
};
use weir::style::{bytes, clean, duration};

use super::state::{Row, Sort, State};

const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const BAD: Style = Style::new().fg(Color::Red);
const GOOD: Style = Style::new().fg(Color::Green);
const WARN: Style = Style::new().fg(Color::Yellow);

const KEYS: [(&str, &str); 10] = [
    ("q, Ctrl-C", "quit"),
    ("s, S", "sort by the next, or the column before"),
    ("r", "turn the order round"),
    ("/", "search names; Escape ends it"),
    ("p", "pause, and go on"),
    ("a", "also show pairs that were silent for a minute"),
    ("Enter", "details of the pair, and away with them"),
    ("arrows, j, k", "move"),
    ("page keys, g, G", "move far"),
    ("?", "these keys"),
];

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State, now: Timestamp) {
    let rows = state.rows(now);
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(heading(state, &rows, now), head);
    table(frame, body, state, &rows);
    frame.render_widget(footer(state), foot);
    if state.has_details
        && let Some(row) = rows.get(state.chosen())
    {
        over(frame, body, "Pair", details(row));
    }
    if state.is_asking_for_keys {
        let lines =
            KEYS.map(|(key, what)| Line::from(vec![Span::styled(format!("{key:>16}  "), BOLD), what.into()]));
        over(frame, body, "Keys", Text::from(lines.to_vec()));
    }
}

fn heading(state: &State, rows: &[Row], now: Timestamp) -> Line<'static> {
    let sum = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>();
    let open: u64 = rows.iter().map(|row| row.pair.open).sum();
    let time = now.to_zoned(TimeZone::system()).strftime("%H:%M:%S");
    let mut spans = vec![
        Span::styled("weir top", BOLD),
        format!("  {time}  {} pairs  {open} open  ", rows.len()).into(),
        format!("{:.1}/s opened  ", sum(|row| row.rates.opened)).into(),
    ];
    let failed = sum(|row| row.rates.failed);
    let style = if failed > 0.0 { BAD } else { DIM };
    spans.push(Span::styled(format!("{failed:.1}/s failed  "), style));
    spans.push(format!("{}/s", bytes(rate(sum(|row| row.rates.bytes)))).into());
    if state.nodes > 1 {
        spans.push(Span::styled(format!("  {} nodes", state.nodes), DIM));
    }
    if state.pairs.lost() > 0 {
        spans.push(Span::styled(
            format!("  {} records lost", state.pairs.lost()),
            WARN,
        ));
    }
    if state.is_paused() {
        spans.push(Span::styled("  PAUSED", WARN));
    }
    if state.ended {
        spans.push(Span::styled("  the stream ended", BAD));
    }
    Line::from(spans)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is not negative, and shown in few digits"
)]
fn rate(value: f64) -> u64 {
    value as u64
}

fn table(frame: &mut Frame<'_>, area: Rect, state: &mut State, rows: &[Row]) {
    let columns: [(&str, Sort); 10] = [
        ("FROM", Sort::Name),
        ("TO", Sort::Name),
        ("PORT", Sort::Name),
        ("PATH", Sort::Name),
        ("RATE", Sort::Rate),
        ("OPEN", Sort::Open),
        ("OPENED", Sort::Opened),
        ("FAILED", Sort::Failures),
        ("BYTES", Sort::Bytes),
        ("RTT", Sort::Rtt),
    ];
    let head = columns.map(|(name, sort)| {
        let is_own = sort == state.sort && !(sort == Sort::Name && name != "FROM");
        let mark = match (is_own, state.is_reversed) {
            (false, _) => "",
            (true, false) => "▼",
            (true, true) => "▲",
        };
        Cell::from(format!("{name}{mark}")).style(if is_own { BOLD } else { DIM })
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(6),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(8),
    ];
    state.fits(usize::from(area.height.saturating_sub(1)));
    if rows.is_empty() {
        let text = if state.search.is_empty() {
            "No connection in the last minute. a: also those before."
        } else {
            "No pair is called so. Escape ends the search."
        };
        frame.render_widget(Paragraph::new(text).style(DIM), area);
        return;
    }
    let table = Table::new(rows.iter().map(cells), widths)
        .header(TableRow::new(head))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut chosen = TableState::default().with_selected(Some(state.chosen()));
    frame.render_stateful_widget(table, area, &mut chosen);
}

fn cells(row: &Row) -> TableRow<'static> {
    let pair = &row.pair;
    let failures = pair.denied + pair.failed;
    let (path, style) = path(row);
    let port = pair.ports.first().map(u16::to_string).unwrap_or_default();
    TableRow::new([
        Cell::from(clean(&row.from.to_string()).into_owned()),
        Cell::from(clean(&row.to.to_string()).into_owned()),
        Cell::from(port),
        Cell::from(path).style(style),
        Cell::from(format!("{:.1}/s", row.rates.opened)),
        Cell::from(pair.open.to_string()),
        Cell::from(pair.opened.to_string()),
        Cell::from(failures.to_string()).style(if failures > 0 { BAD } else { DIM }),
        Cell::from(bytes(pair.sent + pair.received)),
        Cell::from(pair.rtt_us.map(|rtt| duration(rtt.into())).unwrap_or_default()),
    ])
}

fn path(row: &Row) -> (&'static str, Style) {
    let paths = row.pair.paths;
    match (paths.tunnel > 0, paths.direct > 0, paths.plaintext > 0) {
        (false, false, false) => ("-", DIM),
        (true, false, false) => ("mTLS", GOOD),
        (false, true, false) => ("direct", GOOD),
        (false, false, true) => ("plaintext", WARN),
        (true, true, false) => ("mTLS", GOOD),
        (_, _, true) => ("mixed", WARN),
    }
}

fn details(row: &Row) -> Text<'static> {
    let pair = &row.pair;
    let ports: Vec<String> = pair.ports.iter().map(u16::to_string).collect();
    let paths = pair.paths;
    let last = pair
        .last
        .to_zoned(TimeZone::system())
        .strftime("%H:%M:%S")
        .to_string();
    let lines = [
        ("from", clean(&row.from.to_string()).into_owned()),
        ("to", clean(&row.to.to_string()).into_owned()),
        ("ports", ports.join(", ")),
        (
            "opened",
            format!("{} ({:.1}/s), {} open", pair.opened, row.rates.opened, pair.open),
        ),
        (
            "how",
            format!(
                "{} mTLS, {} direct, {} plaintext",
                paths.tunnel, paths.direct, paths.plaintext
            ),
        ),
        ("denied", pair.denied.to_string()),
        ("failed", pair.failed.to_string()),
        (
            "last reason",
            pair.problem.clone().unwrap_or_else(|| "none".to_owned()),
        ),
        ("sent", bytes(pair.sent)),
        ("received", bytes(pair.received)),
        (
            "round trip",
            pair.rtt_us.map(|rtt| duration(rtt.into())).unwrap_or_default(),
        ),
        ("last record", last),
    ];
    let lines = lines
        .map(|(name, value)| Line::from(vec![Span::styled(format!("{name:>12}  "), BOLD), value.into()]));
    Text::from(lines.to_vec())
}

fn footer(state: &State) -> Line<'static> {
    if state.is_searching || !state.search.is_empty() {
        let cursor = if state.is_searching { "_" } else { "" };
        return Line::from(vec![
            Span::styled("/", BOLD),
            format!("{}{cursor}", clean(&state.search)).into(),
        ]);
    }
    match &state.notice {
        Some(notice) => Line::styled(clean(notice).into_owned(), WARN),
        None => Line::styled(
            "q quit  s sort  r reverse  / search  p pause  a all  Enter details  ? keys",
            DIM,
        ),
    }
}

/// A box over the middle of an area.
fn over(frame: &mut Frame<'_>, area: Rect, title: &'static str, text: Text<'static>) {
    let height = u16::try_from(text.lines.len())
        .unwrap_or(u16::MAX)
        .saturating_add(2);
    let width = u16::try_from(text.width()).unwrap_or(u16::MAX).saturating_add(4);
    let (width, height) = (width.min(area.width), height.min(area.height));
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(text).block(Block::bordered().title(title)), place);
}
