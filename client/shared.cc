// The only source of the shared library; the rest comes from the static libraries.
#include "kvclient/kvclient.h"
