// The one translation unit that compiles Boost.JSON; everything else includes its declarations only.
#include <boost/json/src.hpp>
