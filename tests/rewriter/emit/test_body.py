"""The body of a generated function: what is written where it is read, what gets a name, and what is left out."""

from itertools import count

from lowtide.rewriter.emit.body import Body, Deleted, Note


def settled(body, *results):
    """Return the lines as text, and the results."""
    numbers = count()
    lines, shown = body.settle(results, lambda hint: f"{hint}_{next(numbers)}")
    texts = [
        f"del {', '.join(line.names)}"
        if isinstance(line, Deleted)
        else f"# {line.text}" * isinstance(line, Note) or line.text
        for line in lines
    ]
    return texts, shown


def test_a_view_that_is_read_once_is_written_there_and_not_deleted():
    body = Body()
    body.call("x = make()")
    view = body.view("view", "x.view([4])")
    body.call(f"y = read({view})")
    body.delete("x", view)
    body.call("z = read(y)")
    assert settled(body, "z") == (["x = make()", "y = read(x.view([4]))", "del x", "z = read(y)"], ["z"])


def test_views_of_views_are_chained_and_those_of_results_stand_there():
    body = Body()
    first = body.view("view", "x.view([4])")
    second = body.view("t", f"{first}.t()")
    assert settled(body, second, "y") == ([], ["x.view([4]).t()", "y"])


def test_a_view_that_is_read_twice_or_is_long_gets_a_name_until_its_base_goes():
    body = Body()
    view, long = body.view("view", "x.view([4])"), body.view("long", f"x.view([{'4, ' * 40}4])")
    body.call(f"y = add({view}, {view}, {long})")
    body.delete("x", view, long)
    body.call("z = read(y)")
    lines, _ = settled(body)
    assert lines[0] == "view_0 = x.view([4])" and lines[1].startswith("long_1 = x.view(")
    assert lines[2:] == ["y = add(view_0, view_0, long_1)", "del x, view_0, long_1", "z = read(y)"]


def test_what_goes_at_one_point_is_deleted_once_and_nothing_at_the_end():
    body = Body()
    body.call("a, b = make()")
    body.delete("a")
    body.delete("b", "a")
    body.call("c = make()")
    body.delete("c")
    assert settled(body)[0] == ["a, b = make()", "del a, b", "c = make()"]


def test_notes_stand_before_lines_and_are_not_repeated():
    body = Body()
    for note, line in (("first", "a = make()"), ("nothing", ""), ("first", "b = make()"), ("second", "c = make()")):
        body.note(note)
        if line:
            body.call(line)
    body.note("nothing")
    assert settled(body)[0] == ["# first", "a = make()", "b = make()", "# second", "c = make()"]
