//! The page: text, tables and plots below each other.

use super::plot::{self, Bar};
use std::fmt::{Display, Write};

/// A report that is being written. All text is escaped.
pub struct Report {
    title: String,
    body: String,
}

const STYLE: &str = include_str!("report.css");

/// Text as HTML shows it.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // HTML has no way to write other control characters.
            c if c.is_control() && c != '\n' && c != '\t' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

impl Report {
    /// `summary`: one sentence below the title.
    pub fn new(title: &str, summary: &str) -> Report {
        let mut report = Report { title: title.to_string(), body: String::new() };
        report.add(format_args!("<h1>{}</h1>\n<p>{}</p>\n", escaped(title), escaped(summary)));
        report
    }

    /// Writing to a string cannot fail.
    fn add(&mut self, html: std::fmt::Arguments) {
        let _ = self.body.write_fmt(html);
    }

    pub fn heading(&mut self, text: &str) -> &mut Report {
        self.add(format_args!("<h2>{}</h2>\n", escaped(text)));
        self
    }

    pub fn text(&mut self, text: &str) -> &mut Report {
        self.add(format_args!("<p>{}</p>\n", escaped(text)));
        self
    }

    /// Cells that are numbers stand to the right.
    pub fn table<C: Display>(&mut self, headers: &[&str], rows: &[Vec<C>]) -> &mut Report {
        self.add(format_args!("<div class=\"wide\"><table>\n<tr>"));
        for header in headers {
            self.add(format_args!("<th scope=\"col\">{}</th>", escaped(header)));
        }
        self.add(format_args!("</tr>\n"));
        for row in rows {
            self.add(format_args!("<tr>"));
            for cell in row {
                let text = cell.to_string();
                let number = text.trim_end_matches([' ', '%']).parse::<f64>().is_ok();
                let class = if number { " class=\"number\"" } else { "" };
                self.add(format_args!("<td{class}>{}</td>", escaped(&text)));
            }
            self.add(format_args!("</tr>\n"));
        }
        self.add(format_args!("</table></div>\n"));
        self
    }

    /// A bar a row, as long as its value.
    pub fn bars(&mut self, title: &str, bars: &[Bar]) -> &mut Report {
        let plot = plot::bars(bars);
        self.figure(title, &plot)
    }

    /// Columns side by side, of a histogram.
    pub fn histogram(&mut self, title: &str, bars: &[Bar]) -> &mut Report {
        let plot = plot::columns(bars);
        self.figure(title, &plot)
    }

    fn figure(&mut self, title: &str, svg: &str) -> &mut Report {
        self.add(format_args!("<figure><figcaption>{}</figcaption>\n{svg}</figure>\n", escaped(title)));
        self
    }

    /// The page.
    pub fn html(&self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
            escaped(&self.title),
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_stays_text() {
        let hostile = "<script>alert('1')</script> & \"x\"\u{1b}[0m";
        let mut report = Report::new(hostile, hostile);
        report.heading(hostile).text(hostile).table(&[hostile], &[vec![hostile]]);
        report.bars(hostile, &[Bar::new(hostile, 1.0)]).histogram(hostile, &[Bar::new(hostile, 2.0)]);
        let html = report.html();
        assert!(!html.contains("<script") && !html.contains('\u{1b}') && !html.contains("alert('"), "{html}");
        // Title twice, summary, three texts, two figures' titles, and each bar's label with its tooltip.
        assert_eq!(html.matches("&lt;script&gt;").count(), 13);
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        let html = Report::new("a", "b").html();
        for word in ["http:", "https:", "src=", "@import", "url(", "<link", "<script"] {
            assert!(!html.contains(word), "{word}");
        }
    }

    #[test]
    fn numbers_stand_to_the_right() {
        let html = Report::new("a", "b").table(&["x", "y"], &[vec!["12.5 %", "abc"], vec!["-3", "1a"]]).html();
        assert_eq!(html.matches("<td class=\"number\">").count(), 2);
    }
}
