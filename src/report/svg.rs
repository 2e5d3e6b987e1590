//! Drawings made of numbers only: nothing of what they show comes from a string that somebody else wrote.
//!
//! Fills, not CSS backgrounds: browsers print those. Every state differs in shape as well as in colour, for black-and-white
//! printers.

use super::facts::{ByteClasses, Cell, Map};
use std::fmt::Write;

/// Cells of a row of the map.
pub const ROW_CELLS: usize = 96;
/// Most cells of a map: eight rows.
pub const MAX_CELLS: u64 = 768;
/// Units of a cell's side.
const SIDE: usize = 10;

const STORED: &str = "#27496d";
const ZERO: &str = "#e9edf1";
const UNREADABLE: &str = "#d98e04";
const DAMAGED: &str = "#b3261e";
const SAVED: &str = "#9db4c8";

/// Builds a map while blocks pass by in order.
#[derive(Debug, Clone)]
pub struct MapBuilder {
    blocks_per_cell: u64,
    cells: Vec<Cell>,
}

impl MapBuilder {
    /// For a disk of `blocks` blocks.
    pub fn new(blocks: u64) -> Self {
        let blocks_per_cell = blocks.div_ceil(MAX_CELLS).max(1);
        let cells = usize::try_from(blocks.div_ceil(blocks_per_cell)).unwrap_or(0);
        MapBuilder { blocks_per_cell, cells: vec![Cell::Zero; cells] }
    }
    /// Marks one block; the worst state of a cell counts.
    pub fn mark(&mut self, block: u64, state: Cell) {
        let cell = usize::try_from(block / self.blocks_per_cell).ok().and_then(|at| self.cells.get_mut(at));
        if let Some(cell) = cell {
            *cell = worse(*cell, state);
        }
    }
    /// The map.
    pub fn finish(self) -> Map {
        Map { blocks_per_cell: self.blocks_per_cell, cells: self.cells.into_iter().map(Cell::letter).collect() }
    }
}

fn worse(a: Cell, b: Cell) -> Cell {
    let rank = |cell: Cell| match cell {
        Cell::Zero => 0,
        Cell::Stored => 1,
        Cell::Unreadable => 2,
        Cell::Damaged => 3,
    };
    if rank(b) > rank(a) { b } else { a }
}

fn colour(cell: Cell) -> &'static str {
    match cell {
        Cell::Zero => ZERO,
        Cell::Stored => STORED,
        Cell::Unreadable => UNREADABLE,
        Cell::Damaged => DAMAGED,
    }
}

/// Strokes across one cell, so that shapes differ where colours do not print.
fn mark(svg: &mut String, cell: Cell, x: usize, y: usize) {
    let (right, bottom) = (x + SIDE, y + SIDE);
    let path = match cell {
        Cell::Unreadable => format!("M{x} {bottom}L{right} {y}"),
        Cell::Damaged => format!("M{x} {bottom}L{right} {y}M{x} {y}L{right} {bottom}"),
        Cell::Zero | Cell::Stored => return,
    };
    let _ = write!(svg, "<path d=\"{path}\" stroke=\"#fff\" stroke-width=\"1.6\"/>");
}

/// The map of a disk. Runs of equal cells are one rectangle under a white grid: bounded, whatever the disk.
pub fn map(map: &Map) -> String {
    let cells: Vec<Cell> = map.cells.chars().filter_map(Cell::from_letter).take(MAX_CELLS as usize).collect();
    let rows = cells.len().div_ceil(ROW_CELLS).max(1);
    let (width, height) = (ROW_CELLS * SIDE, rows * SIDE);
    let mut svg = format!(
        "<svg class=\"map\" viewBox=\"0 0 {width} {height}\" role=\"img\" preserveAspectRatio=\"none\" style=\"aspect-ratio:{width}/{height}\">"
    );
    for (row, line) in cells.chunks(ROW_CELLS).enumerate() {
        let y = row * SIDE;
        let mut at = 0;
        for run in line.chunk_by(|a, b| a == b) {
            let Some(cell) = run.first() else { continue };
            let (x, wide) = (at * SIDE, run.len() * SIDE);
            let _ = write!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{SIDE}\" fill=\"{}\"/>",
                colour(*cell)
            );
            for i in 0..run.len() {
                mark(&mut svg, *cell, (at + i) * SIDE, y);
            }
            at += run.len();
        }
    }
    let mut grid = String::new();
    for x in 0..=ROW_CELLS {
        let _ = write!(grid, "M{} 0V{height}", x * SIDE);
    }
    for y in 0..=rows {
        let _ = write!(grid, "M0 {}H{width}", y * SIDE);
    }
    let _ = write!(svg, "<path d=\"{grid}\" stroke=\"#fff\" stroke-width=\"1.4\" fill=\"none\"/></svg>");
    svg
}

/// One bar: stored, compressed away, zero.
pub fn classes(classes: &ByteClasses) -> String {
    const WIDTH: f64 = 960.0;
    let total = classes.stored as f64 + classes.compressed_away as f64 + classes.zero as f64;
    let mut svg = String::from("<svg class=\"bar\" viewBox=\"0 0 960 22\" role=\"img\" preserveAspectRatio=\"none\">");
    let mut x = 0.0;
    for (bytes, fill) in [(classes.stored, STORED), (classes.compressed_away, SAVED), (classes.zero, ZERO)] {
        let wide = if total > 0.0 { WIDTH * bytes as f64 / total } else { 0.0 };
        if wide > 0.0 {
            let _ = write!(svg, "<rect x=\"{x:.2}\" y=\"0\" width=\"{wide:.2}\" height=\"22\" fill=\"{fill}\"/>");
        }
        x += wide;
    }
    svg.push_str("<rect x=\"0.5\" y=\"0.5\" width=\"959\" height=\"21\" fill=\"none\" stroke=\"#7d8b99\"/></svg>");
    svg
}

/// A swatch for legends.
pub fn swatch(name: &str) -> String {
    let (fill, cell) = match name {
        "stored" => (STORED, Cell::Stored),
        "zero" => (ZERO, Cell::Zero),
        "unreadable" => (UNREADABLE, Cell::Unreadable),
        "damaged" => (DAMAGED, Cell::Damaged),
        _ => (SAVED, Cell::Stored),
    };
    let mut svg = format!(
        "<svg class=\"swatch\" viewBox=\"0 0 10 10\"><rect width=\"10\" height=\"10\" fill=\"{fill}\" stroke=\"#7d8b99\" stroke-width=\"0.6\"/>"
    );
    mark(&mut svg, cell, 0, 0);
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_bounded_and_shows_the_worst_of_each_cell() {
        for blocks in [0, 1, 95, 96, 97, 768, 769, 1 << 20, u64::MAX >> 20] {
            let builder = MapBuilder::new(blocks);
            assert!(builder.cells.len() as u64 <= MAX_CELLS, "{blocks}");
            assert!(map(&builder.finish()).len() < 200_000);
        }
        let mut builder = MapBuilder::new(1600);
        builder.mark(0, Cell::Damaged);
        builder.mark(1, Cell::Stored);
        builder.mark(1599, Cell::Unreadable);
        builder.mark(99_999, Cell::Damaged);
        let map = builder.finish();
        assert_eq!(map.blocks_per_cell, 3);
        assert!(map.cells.starts_with('d') && map.cells.ends_with('u'), "{}", map.cells);
        assert_eq!(map.cells.len(), 534);
    }

    #[test]
    fn the_classes_fill_the_bar() {
        let svg = classes(&ByteClasses { stored: 1, compressed_away: 1, zero: 2 });
        assert!(svg.contains("width=\"240.00\"") && svg.contains("width=\"480.00\""), "{svg}");
        assert!(!classes(&ByteClasses::default()).contains("NaN"));
    }
}
