"""The ablations' table and plot, from planted runs."""

import builtins
import re
import statistics

import pytest

from results import ablation, plot


@pytest.fixture
def plant(tmp_path, plant_run):
    """plant(point, base, new, ...): the result.json files of one seed at one point of the grid."""

    def plant(point, base, new, **settings):
        return plant_run(plant.folder / str(point), base, new, **settings)

    plant.folder = tmp_path / "omega"
    return plant


@pytest.fixture
def table(plant, capsys):
    """Runs the command: its exit code, the cells of each row by point, everything written."""

    def table():
        code = ablation.main([str(plant.folder)])
        written = capsys.readouterr()
        rows = [re.split(r"\s{2,}", line.strip()) for line in written.out.splitlines()]
        return code, {row[0]: row[1:] for row in rows if len(row) == 7}, written

    return table


@pytest.fixture
def no_matplotlib(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)


@pytest.mark.usefixtures("no_matplotlib")
class TestTable:
    def test_each_point_has_means_deviations_and_costs_over_its_seeds(self, plant, table):
        for seed, (base, new) in enumerate([(80.0, 60.0), (90.0, 40.0)], start=1):
            plant(2, base, new, seed=seed, train=10.0 * seed, memory=300.0)
        code, rows, _ = table()
        h = [2 * 80 * 60 / 140, 2 * 90 * 40 / 130]
        expected = f"{statistics.mean(h):.2f} ±{statistics.stdev(h):.2f}"
        assert code == 0
        assert rows["2"] == ["85.00 ±7.07", "50.00 ±14.14", expected, "17.0 (2.0)", "300", "2"]

    def test_points_are_in_the_order_of_their_numbers(self, plant, table):
        for point in (10, 2, 0, 8):
            plant(point, 80.0, 60.0)
        assert list(table()[1])[2:] == ["0", "2", "8", "10"]

    def test_components_are_named_and_in_the_order_of_table_4(self, plant, table):
        for point in ("both", "cskip", "ft", "lskip"):
            plant(point, 80.0, 60.0)
        assert list(table()[1])[2:] == ["FT", "LSkip only", "CSkip only", "both"]

    def test_presets_are_tables_of_their_own(self, plant, table):
        plant(2, 80.0, 60.0, config="vit_b16_paper")
        plant(2, 70.0, 60.0, config="vit_b16_official")
        out = table()[2].out
        assert "emoji, SkipTuning, vit_b16_paper, 5 shots, ViT-XS/16-icons" in out
        assert "emoji, SkipTuning, vit_b16_official, 5 shots, ViT-XS/16-icons" in out

    def test_several_datasets_are_averaged_too(self, plant, table):
        plant(2, 80.0, 60.0)
        plant(2, 60.0, 40.0, dataset="dtd")
        out = table()[2].out
        assert "Average of 2, SkipTuning, embedded" in out and "70.00" in out

    def test_a_missing_half_is_listed_and_left_out(self, plant, table):
        plant(2, 80.0, 60.0)
        _, new = plant(4, 80.0, 60.0)
        new.unlink()
        code, rows, written = table()
        assert code == 1 and rows["4"][1:3] == ["-", "-"]
        assert "Missing or broken" in written.err and "4/base2new/test_new" in written.err

    def test_an_empty_folder_says_which_command_fills_it(self, plant, table):
        code, _, written = table()
        assert code == 2 and "bash scripts/skip/ablate_omega.sh" in written.err

    def test_without_matplotlib_the_table_stands_and_a_line_says_what_to_install(self, plant, table):
        plant(2, 80.0, 60.0)
        code, rows, written = table()
        assert code == 0 and "2" in rows
        assert "pip install matplotlib" in written.err
        assert not list(plant.folder.glob("*.png"))


class TestPlot:
    @pytest.fixture(autouse=True)
    def matplotlib(self):
        return pytest.importorskip("matplotlib")

    def test_it_is_written_beside_the_points_and_named(self, plant, table):
        plant(2, 80.0, 60.0)
        out = table()[2].out
        (file,) = plant.folder.glob("*.png")
        assert file.name == "emoji_SkipTuning_embedded_5_shots_ViT-XS_16-icons.png" and f"Plot: {file}" in out
        assert file.read_bytes().startswith(b"\x89PNG")

    def test_two_backbones_have_a_plot_each(self, plant, table):
        plant(2, 80.0, 60.0)
        for file in plant(4, 80.0, 60.0):
            file.write_text(file.read_text().replace("ViT-XS/16-icons", "ViT-B/16"))
        assert table()[2].out.count("Plot: ") == len(list(plant.folder.glob("*.png"))) == 2

    def test_it_shows_the_means_and_spreads_of_the_table(self, plant, monkeypatch):
        for seed, base in enumerate([80.0, 90.0], start=1):
            plant(2, base, 60.0, seed=seed)
        plant(4, 70.0, 60.0)
        drawn = {}

        def keep(path, paint, size):
            from matplotlib.figure import Figure

            figure = Figure()
            paint(figure)
            for axes in figure.axes:
                for bars in axes.containers:
                    line, _, (stems,) = bars.lines
                    low_high = [segment[:, 1] for segment in stems.get_segments()]
                    drawn[bars.get_label()] = (list(line.get_xydata()[:, 1]), [high - low for low, high in low_high])

        monkeypatch.setattr(ablation, "plot", keep)
        ablation.main([str(plant.folder)])
        mean, interval = drawn["Base"]
        assert mean == [85.0, 70.0]
        assert interval == pytest.approx([2 * statistics.stdev([80, 90]), 0])
        assert drawn["Train s"][0] == [12.0, 12.0] and drawn["Peak MB"][0] == [100.0, 100.0]

    def test_costs_that_no_row_has_are_not_drawn(self):
        from matplotlib.figure import Figure

        rows = [{"point": "0", "h": [46.1, None], "memory_mb": None}, {"point": "2", "h": [44.2, None]}]
        canvas = Figure()
        ablation.paint(canvas, {"columns": [["point", "omega", "text"]], "rows": rows})
        (axes,) = canvas.axes
        assert [bars.get_label() for bars in axes.containers] == ["H"] and axes.get_xlabel() == "omega"

    def test_a_failed_plot_leaves_the_old_one(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(b"old")

        def paint(figure):
            raise RuntimeError

        with pytest.raises(RuntimeError):
            plot.plot(path, paint, (1, 1))
        assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
