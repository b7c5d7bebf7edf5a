"""A spec as code: CuTe DSL, CUTLASS C++, torch."""
