use crate::measure::page::*;

#[test]
fn figures_take_the_place_of_those_before() {
    let page = format!("# Page\n\n{BEGIN}\nold\n{END}\n\nThe end.\n");
    let once = filled(&page, "new\n").unwrap();
    assert_eq!(once, format!("# Page\n\n{BEGIN}\n\nnew\n\n{END}\n\nThe end.\n"));
    assert_eq!(filled(&once, "new").unwrap(), once);
    assert_eq!(filled("# Page", "new"), None);
}
