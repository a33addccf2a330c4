//! What `make bench` makes of its figures: statistics, readers, tables, plots, budgets.

#[path = "../../benches/measure/mod.rs"]
mod measure;

#[path = "../../benches/load/summary.rs"]
mod summary;

mod spread;
mod rounds;
mod results;
mod output;
mod table;
mod budgets;
mod svg;
mod page;
mod load;
