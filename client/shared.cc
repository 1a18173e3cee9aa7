// The one source of the shared library; everything else comes from the static ones.
#include "kvclient/kvclient.h"
