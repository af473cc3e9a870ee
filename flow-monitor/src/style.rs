//! Colours, shown on a terminal only, short forms of numbers, and text that others wrote made harmless.

use std::{borrow::Cow, fmt::Write as _};

use anstyle::{AnsiColor, Style};

/// As it should be.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Refused or broken.
pub const BAD: Style = AnsiColor::Red.on_default();
/// Worth a look.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// Of less interest.
pub const DIM: Style = Style::new().dimmed();
/// What a line is about.
pub const BOLD: Style = Style::new().bold();

/// Text in a style.
#[must_use]
pub fn paint(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Text that somebody else wrote, such as the name that a process gave itself, for one line of a terminal: what would
/// move the cursor, change colours or reorder the line is shown escaped.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if acts(c) {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    Cow::Owned(clean)
}

/// JSON for a terminal. JSON itself escapes control characters below U+0020 only, but terminals act on those up to
/// U+009F too. All stand in strings, where the escape means the same; line feeds between the tokens stay.
#[must_use]
pub fn clean_json(json: &str) -> Cow<'_, str> {
    let bad = |c: char| c != '\n' && acts(c);
    if !json.contains(bad) {
        return Cow::Borrowed(json);
    }
    let mut clean = String::with_capacity(json.len() + 8);
    for c in json.chars() {
        if bad(c) {
            // None is above U+FFFF. Writing to a String does not fail.
            let _ = write!(clean, "\\u{:04x}", u32::from(c));
        } else {
            clean.push(c);
        }
    }
    Cow::Owned(clean)
}

/// Whether a terminal does something else than show the character: control characters of ASCII and ISO 6429, line
/// and paragraph separators, and those that change the direction of writing (Unicode UAX 9).
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Bytes as a person reads them, powers of 1024.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Microseconds as a person reads them.
#[must_use]
pub fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{:.1}ms", us as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.1}s", us as f64 / 1e6),
        60_000_000..3_600_000_000 => format!("{}m{:02}s", us / 60_000_000, us / 1_000_000 % 60),
        _ => format!("{}h{:02}m", us / 3_600_000_000, us / 60_000_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_shown_and_does_nothing() {
        for (text, shown) in [
            ("nginx: worker", "nginx: worker"),
            ("größe", "größe"),
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("a\r\nb", "a\\r\\nb"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}x", "\\u{202e}x"),
        ] {
            assert_eq!(clean(text), shown);
        }
        let value = serde_json::json!({ "name": "\u{1b}[2J\u{9b}31m\u{7f}\u{202e}ß" });
        let json = serde_json::to_string_pretty(&value).unwrap();
        let shown = clean_json(&json);
        assert!(!shown.contains(|c| c != '\n' && acts(c)), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn numbers_are_short() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (3 << 30, "3.0 GiB"),
        ];
        for (count, text) in table {
            assert_eq!(bytes(count), text);
        }
        let table = [
            (7, "7us"),
            (1500, "1.5ms"),
            (2_500_000, "2.5s"),
            (61_000_000, "1m01s"),
        ];
        for (us, text) in table {
            assert_eq!(duration(us), text);
        }
    }
}
