def test_inside_a_transaction_every_operation_keeps_its_own_reason(store):
    with store.transaction("outer"):
        first = store.add("one")
        store.update(first.id, text="two", why="inner")
        with store.transaction("nested"):
            store.add("three")
        store.add("four")
    reasons = [event.why for event in store.events()]
    assert reasons[0] == "outer"
    assert "inner" in reasons
    assert reasons[-2:] == ["nested", "outer"]
