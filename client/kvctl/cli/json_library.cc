// The only translation unit that compiles Boost.JSON; all others include its declarations only.
#include <boost/json/src.hpp>
