//! What `make bench` makes of its figures, all of it without a server or a clock: statistics, results, tables, plots,
//! budgets. Its tests run with `cargo test`.

pub(crate) mod spread;
pub(crate) mod rounds;
pub(crate) mod results;
pub(crate) mod output;
pub(crate) mod table;
pub(crate) mod budgets;
pub(crate) mod svg;
pub(crate) mod page;
