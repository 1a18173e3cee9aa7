// Catch2 2.13 (Debian 12) and 3.x (Ubuntu 24.04) under one name, and what else each test includes
// from outside of this project. The test targets precompile it.
//
// It includes no header of the project (tests/layers/check_layers.py). ccache takes a precompiled
// header from its cache if the preprocessed text is the same, so also if only a comment changed.
// GCC then compares the header's bytes with those that were precompiled, finds them different,
// takes no notice of `#pragma once` and reports each definition as a second one.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <boost/system/result.hpp>

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif
