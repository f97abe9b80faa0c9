"""The reader of compiled programs on a small stored text.

    python -m pytest tests/bench/test_compiled.py

tests/training/test_plan.py holds it against what XLA compiles for 8 virtual devices.
"""

from bench import compiled

HLO = """HloModule jit_step, is_scheduled=true

%scatter.1 (p: f32[64,8]) -> f32[8,8] {
  %p = f32[64,8]{1,0} parameter(0)
  %all-reduce.9 = f32[64,8]{1,0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[8,8]{1,0} dynamic-slice(%all-reduce.9, %i, %i)
}

%wrapped (q: bf16[8,8]) -> bf16[64,8] {
  %q = bf16[8,8]{1,0} parameter(0)
  ROOT %all-gather.7 = bf16[64,8]{1,0} all-gather(%q), replica_groups=[1,8]<=[8], dimensions={0}
}

%product (a: bf16[64,8]) -> bf16[64,8] {
  %a = bf16[64,8]{1,0} parameter(0)
  ROOT %convolution.3 = bf16[64,8]{1,0} convolution(%a, %a), dim_labels=bf_io->bf
}

%fused-start (w: bf16[8,8]) -> (bf16[8,8], bf16[64,8]) {
  %all-gather.31 = bf16[64,8]{1,0} all-gather(%w), channel_id=31, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%fused-step (w: bf16[8,8], x: bf16[64,8]) -> (bf16[64,8], bf16[64,8]) {
  %all-gather.32 = bf16[64,8]{1,0} all-gather(%w), channel_id=31, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %convolution.32 = bf16[64,8]{1,0} convolution(%x, %x), dim_labels=bf_io->bf
}

%fused-done (w: bf16[8,8]) -> bf16[64,8] {
  ROOT %all-gather.33 = bf16[64,8]{1,0} all-gather(%w), channel_id=31, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%body (s: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {
  %s = (s32[], bf16[8,8]) parameter(0)
  %start.1 = ((bf16[8,8]), bf16[64,8], u32[]) async-start(%w), calls=%wrapped
  %fusion.2 = bf16[64,8]{1,0} fusion(%x), kind=kOutput, calls=%product
  %done.1 = bf16[64,8]{1,0} async-done(%start.1), calls=%wrapped
  %all-gather-start.2 = (bf16[8,8], bf16[64,8]) all-gather-start(%w), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %all-gather-done.2 = bf16[64,8]{1,0} all-gather-done(%all-gather-start.2)
  %all-gather.4 = bf16[64,8]{1,0} all-gather(%w), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %fusion.5 = f32[8,8]{1,0} fusion(%fusion.2), kind=kCustom, calls=%scatter.1
  %fusion.31 = (bf16[8,8], bf16[64,8]) fusion(%w), kind=kLoop, calls=%fused-start
  %fusion.32 = (bf16[64,8], bf16[64,8]) fusion(%part, %x), kind=kOutput, calls=%fused-step
  %fusion.33 = bf16[64,8]{1,0} fusion(%part), kind=kLoop, calls=%fused-done
  ROOT %out = (s32[], bf16[8,8]) tuple(%n, %w)
}

%condition (s: (s32[], bf16[8,8])) -> pred[] {
  %s = (s32[], bf16[8,8]) parameter(0)
  %constant.5 = s32[]{:T(128)} constant(5)
  ROOT %compare = pred[] compare(%s, %constant.5), direction=LT
}

ENTRY %main (w: bf16[8,8]) -> f32[4] {
  %w = bf16[8,8]{1,0} parameter(0)
  %while.1 = (s32[], bf16[8,8]) while(%t), condition=%condition, body=%body
  %reduce-scatter.1 = f32[4,2]{1,0} reduce-scatter(%g), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}, to_apply=%add
  ROOT %all-reduce.1 = (f32[4]{0}, f32[2]{0}) all-reduce(%a, %b), to_apply=%add
}
"""  # noqa: E501  as XLA prints it


def test_collectives_of_a_compiled_program_are_counted_as_often_as_their_loops_turn():
    got = compiled.bytes_received(HLO, 8)
    assert got["all-gather"] == (
        5 * 4 * 64 * 8 * 2 * 7 / 8,
        20,
    )  # a gather spread over three fusions is one
    assert got["reduce-scatter"] == (
        5 * 64 * 8 * 4 * 7 / 8 + 4 * 2 * 4 * 1,
        6,
    )  # the fused ones, and one over pairs
    assert got["all-reduce"] == ((4 + 2) * 4 * 2 * 7 / 8, 1)
    assert set(got) == {"all-gather", "reduce-scatter", "all-reduce"}


def test_a_gather_is_covered_where_a_product_lies_between_its_start_and_its_end():
    assert compiled.overlap(HLO) == [("body", 4, 3, 2, 0.5)]
