"""The checker of the shapes world, on pictures drawn by code: what it reads, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

PER_CAPTION = 4
PAIRS = 500


@pytest.fixture(scope="module")
def scenes(shapes):
    """Every scene of one object several times, and random ones of two: 1220."""
    rng = np.random.default_rng(1)
    pairs = [shapes.world.random_scene(rng, two=1.0) for _ in range(PAIRS)]
    return shapes.world.full_singles() * PER_CAPTION + pairs


@pytest.fixture(scope="module")
def pictures(shapes, scenes):
    rng = np.random.default_rng(2)
    return [shapes.world.draw(scene, rng) for scene in scenes]


def one_picture_each(shapes, scenes, seed: int):
    """Scenes with a picture, drawn when it is asked for."""
    rng = np.random.default_rng(seed)
    return ((scene, shapes.world.draw(scene, rng)) for scene in scenes)


def changed(world, thing):
    """The object with one attribute changed, in every way there is."""
    kinds = {
        "size": world.RADII_PX,
        "colour": world.COLOURS,
        "shape": world.SHAPES,
        "position": world.POSITIONS_PX,
    }
    for name, values in kinds.items():
        for value in values:
            if value != getattr(thing, name):
                yield replace(thing, **{name: value})


def test_drawn_pictures_are_read_right(shapes, scenes, pictures) -> None:
    assert len(scenes) >= 1000
    read = [shapes.checker.read(picture).scene for picture in pictures]
    right = sum(a == b for a, b in zip(read, scenes, strict=True))
    assert right >= 0.995 * len(scenes)


def test_places_widths_and_colours_are_read_to_a_pixel(shapes, scenes, pictures) -> None:
    """The numbers that the Fréchet distance is made of, not only the names."""
    world = shapes.world
    for scene, picture in list(zip(scenes, pictures, strict=True))[::17]:
        for thing, seen in zip(scene, shapes.checker.read(picture).objects, strict=True):
            place = np.array(world.POSITIONS_PX[thing.position])
            assert np.abs(place - (seen.x_px, seen.y_px)).max() <= 2 + 1
            width = 2 * world.RADII_PX[thing.size]
            assert 0.9 * width - 1.5 <= seen.width_px <= 1.1 * width + 1.5
            shade = np.array(world.COLOURS[thing.colour])
            assert np.abs(shade - seen.colour).max() <= 0.05 + 0.01
            assert seen.misfit < 0.12


@pytest.mark.parametrize("grey", [0, 60, 128, 235, 255])
def test_a_blank_picture_shows_nothing(shapes, grey) -> None:
    blank = np.full((64, 64, 3), grey, np.uint8)
    assert shapes.checker.read(blank).objects == ()
    assert not any(
        shapes.judge.right(shapes.world.caption(scene), blank)
        for scene in shapes.world.full_singles()
    )


def test_noise_is_never_right(shapes) -> None:
    rng = np.random.default_rng(3)
    for strength in (20, 60, 255):
        noise = np.clip(235 + strength * rng.standard_normal((64, 64, 3)), 0, 255).astype(np.uint8)
        reading = shapes.checker.read(noise)
        assert not (len(reading.objects) in (1, 2) and all(s.is_full for s in reading.scene))
        assert not shapes.judge.right("a shape", noise)


def test_noise_over_a_right_picture_is_seen_as_roughness(shapes, pictures) -> None:
    rng = np.random.default_rng(4)
    smooth = shapes.checker.read(pictures[0])
    rough = np.clip(pictures[0] + 8 * rng.standard_normal((64, 64, 3)), 0, 255).astype(np.uint8)
    assert smooth.roughness < 0.005 < 0.02 < shapes.checker.read(rough).roughness


@pytest.mark.parametrize(("sigma_px", "share"), [(0.5, 1.0), (3.0, 0.0), (6.0, 0.0)])
def test_soft_edges_pass_and_a_blur_does_not(shapes, scenes, pictures, sigma_px, share) -> None:
    found = []
    for scene, picture in list(zip(scenes, pictures, strict=True))[::13]:
        blurred = ndimage.gaussian_filter(picture.astype(float), (sigma_px, sigma_px, 0))
        found.append(shapes.judge.right(shapes.world.caption(scene), blurred.astype(np.uint8)))
    assert np.mean(found) == pytest.approx(share, abs=0.01)


def averages(shapes, captions, seed: int):
    """Vague captions with the mean of pictures of two of its modes, as a blind student makes."""
    rng = np.random.default_rng(seed)
    draw, parse = shapes.world.draw, shapes.world.parse
    for caption in captions:
        modes = shapes.judge.modes(caption)
        for _ in range(10):
            two = [modes[i] for i in rng.choice(len(modes), 2, replace=False)]
            both = [draw(parse(mode), rng).astype(float) for mode in two]
            yield caption, two, ((both[0] + both[1]) / 2).round().astype(np.uint8)


def test_the_average_of_two_modes_is_no_picture_of_either(shapes) -> None:
    """Two outlines over each other may still fit one of them; two places never do."""
    vague = shapes.world.vague_captions()
    made = list(averages(shapes, vague, 5))
    read = [shapes.judge.mode(caption, picture) for caption, _, picture in made]
    assert sum(mode is not None for mode in read) <= 0.1 * len(made)
    places = [(shapes.world.parse(a)[0], shapes.world.parse(b)[0]) for _, (a, b), _ in made]
    apart = [mode for mode, (a, b) in zip(read, places, strict=True) if a.position != b.position]
    assert len(apart) > 100
    assert set(apart) == {None}


def test_a_colour_between_two_is_not_right_where_the_colour_is_open(shapes) -> None:
    rng = np.random.default_rng(6)
    draw, parse = shapes.world.draw, shapes.world.parse
    pictures = [
        draw(parse(f"a large {colour} square on the right"), rng).astype(float)
        for colour in ("yellow", "black")
    ]
    muddy = ((pictures[0] + pictures[1]) / 2).astype(np.uint8)
    assert shapes.checker.read(muddy).scene[0].colour is None
    assert not shapes.judge.right("a large square on the right", muddy)
    assert shapes.judge.mode("a large square on the right", muddy) is None


def test_every_wrong_attribute_is_caught(shapes) -> None:
    for (thing,), picture in one_picture_each(shapes, shapes.world.full_singles(), 7):
        assert shapes.judge.right(shapes.world.caption((thing,)), picture)
        for other in changed(shapes.world, thing):
            assert not shapes.judge.right(shapes.world.caption((other,)), picture)


def test_a_missing_a_second_and_a_swapped_object_are_caught(shapes) -> None:
    right, parse = shapes.judge.right, shapes.world.parse
    one = "a small red circle on the left"
    two = f"{one} and a large blue square on the right"
    swapped = "a small red circle on the right and a large blue square on the left"
    rng = np.random.default_rng(8)
    alone, both = (shapes.world.draw(parse(caption), rng) for caption in (one, two))
    assert right(one, alone)
    assert right(two, both)
    assert right(" and ".join(reversed(two.split(" and "))), both)
    assert not any((right(two, alone), right(one, both), right(swapped, both)))


@given(
    size=st.sampled_from([None, "small", "large"]),
    colour=st.sampled_from([None, "red", "green", "blue", "yellow", "purple", "black"]),
    shape=st.sampled_from([None, "circle", "square", "triangle"]),
    position=st.sampled_from([None, "left", "right", "top", "bottom", "middle"]),
)
def test_a_caption_is_parsed_to_the_scene_it_was_made_from(
    shapes, size, colour, shape, position
) -> None:
    world = shapes.world
    thing = world.Object(size, colour, shape, position)
    assert world.parse(world.caption((thing,))) == (thing,)
    modes = thing.completions()
    assert len(set(modes)) == len(modes)
    assert all(mode.is_full and thing.allows(mode) for mode in modes)
    every = world.Object(None, None, None, None).completions()
    assert sum(thing.allows(mode) for mode in every) == len(modes)


@pytest.mark.parametrize("caption", ["", "a pink circle", "a circle and ", "ein Kreis"])
def test_a_caption_of_another_world_is_refused_with_its_words(shapes, caption) -> None:
    with pytest.raises(ValueError, match=f"caption '{caption}': .* is not of this world"):
        shapes.world.parse(caption)


def test_vague_captions_leave_each_attribute_open_and_have_few_modes(shapes) -> None:
    vague = shapes.world.vague_captions()
    assert len(set(vague)) == len(vague) >= 20
    things = [shapes.world.parse(caption)[0] for caption in vague]
    assert all(2 <= len(thing.completions()) <= 10 for thing in things)
    for name in ("size", "colour", "shape", "position"):
        assert sum(getattr(thing, name) is None for thing in things) >= 5, name
