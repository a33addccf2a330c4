//! What there is to see of a page, and what is wrong with that.

use serde_json::Value;

use crate::driver::Browser;

/// Looks at the page that the browser shows. Holds what holds of each.
pub(crate) async fn sound(browser: &Browser, of: &str) -> Value {
    let seen = browser.run(include_str!("looks.js")).await;
    let none = |name: &str| {
        let list = seen[name].as_array().unwrap_or_else(|| panic!("{of}: {seen}"));
        assert!(list.is_empty(), "{of}, {name}: {list:#?}");
    };
    none("faults");
    none("elsewhere");
    assert!(seen["texts"].as_u64() > Some(30), "{of}: {seen}");
    assert_eq!(seen["scripts"], 1, "{of}: its own");
    let complaints = browser.complaints().await;
    assert!(complaints.is_empty(), "{of}: {complaints:#?}");
    seen
}
