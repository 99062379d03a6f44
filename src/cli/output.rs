//! Printing: data to stdout, where a broken pipe is an end; messages to stderr, where it is nothing.

use std::io::{self, Write};

use crate::cli::Failure;

/// A message for the person at the terminal.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A line of data.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

/// One line of JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string(value).map_err(|error| Failure::Failed(error.to_string()))?)
}

/// Lays rows out in columns as wide as their widest cell.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    // Names that clients chose among them: what a terminal would obey is shown as what it is.
    let shown = |cell: &String| match cell.chars().any(char::is_control) {
        true => cell.escape_debug().to_string(),
        false => cell.clone(),
    };
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(shown).collect()).collect();
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["longer".into(), "22".into()]];
        assert_eq!(table(&["name", "n"], &rows), "name    n\na       1\nlonger  22\n");
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        let rows = vec![vec!["a\u{1b}[2J\nb".into(), "é".into()]];
        assert_eq!(table(&["name", "n"], &rows), "name           n\na\\u{1b}[2J\\nb  é\n");
    }
}
