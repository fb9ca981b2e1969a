//! What tables and plots are made of.

use mlxgk_reports::{Bar, Line, Page, Table, bars, lines};

#[test]
fn a_table_is_aligned_and_escaped() {
    let row = |it: [&str; 2]| it.map(str::to_owned).to_vec();
    let mut rows = vec![row(["a", "1.50"]), row(["<b>", "22.25"])];
    rows.push(vec!["short".to_owned()]);
    let table = Table::new(["name", "µ"], rows);
    assert_eq!(table.to_string(), "name       µ\na       1.50\n<b>    22.25\nshort");
    assert!(table.html().contains("<tr><td>&lt;b&gt;</td><td>22.25</td></tr>"));
}

#[test]
fn plots_hold_their_points_and_leave_out_what_is_not_finite() {
    let line = Line::new("#123456", vec![(2.0, 4.0), (0.0, 0.0), (1.0, f64::NAN)]);
    let svg = lines("Growth & more", &[line]);
    assert_eq!(svg.matches("<circle").count(), 2);
    // From the lower left corner of the axes to the upper right one.
    assert!(svg.contains("points=\"34.0,136.0 246.0,44.0\""), "{svg}");
    assert!(svg.contains("Growth &amp; more"));
    assert_eq!(lines("Nothing", &[Line::new("red", vec![(f64::INFINITY, 1.0)])]), "");

    let svg = bars("Bars", &[Bar::new("<one>", -1.0), Bar::new("two", 3.0).interval(2.0, 3.0)]);
    // 246 units for -1 to 3, behind labels of 110.
    assert!(svg.contains("<rect x=\"110.0\" y=\"3\" width=\"61.5\""), "{svg}");
    assert!(svg.contains("<rect x=\"171.5\" y=\"21\" width=\"184.5\""), "{svg}");
    assert!(svg.contains("H356.0") && svg.contains("&lt;one&gt;"), "{svg}");
    assert_eq!(bars("Nothing", &[Bar::new("nan", f64::NAN)]), "");
}

#[test]
fn a_page_escapes_its_texts() {
    let mut page = Page::new("A & B");
    page.heading("<h>").text("\"t\"").quote("who", "it's");
    let html = page.to_string();
    assert!(html.starts_with("<!doctype html>"));
    for part in ["<h1>A &amp; B</h1>", "<h2>&lt;h&gt;</h2>", "&quot;t&quot;", "it&#39;s"] {
        assert!(html.contains(part), "{part}: {html}");
    }
}
