/* A slot of the host cache: kvmd owns its generation, and two writers are granted it in turn. */
#include "protocol.pml"

/* ---- a slot of the host cache: kvmd grants it, a writer copies a block to it and answers ------------------------------ */

bool granted[2], answered[2];        /* [writer]; after its answer nothing of its copy comes any more */

proctype Writer(byte p) {
  granted[p];
  atomic { LANDS(p); mem[0] = p + 1 }
  atomic { LANDS(p); mem[1] = p + 1 }
  atomic { CPU(p); answered[p] = true }
}

proctype WriterProcess(byte p) {
  alive[p] = true;
  run Writer(p);
  alive[p] = false;
  ended[p] = true
}

active proctype HostCache() {
  byte p, k;
  bool readable, held;
  run WriterProcess(0); run WriterProcess(1);
  do
  :: p < 2 ->
     k = p + 1; held = false;
#ifndef EVICTED_STAYS_READABLE
     atomic { true; begin_write(0, k) }
#else
     odd[k] = (gen[0] + 1) | 1;
#endif
     granted[p] = true;
     if
     :: answered[p] ->
#ifdef EVICTED_STAYS_READABLE
        gen[0] = odd[k];
#endif
        atomic { true; finish_write(0, k, readable) }
        if
        :: entry[registry] = k; held = true
        :: registry == 0 -> registry = 1; begin_write(0, 0) /* kvmd's restart: readable, and in no index */
        fi
     :: registry == 0 -> registry = 1 /* kvmd's restart; the slot is odd: a writer may be at it */
#ifdef RESTART_FREES_SLOTS
        ; answered[p] = true
#endif
     :: true                         /* not answered in time, or the client has left: the grant is void */
     fi;
     if
     :: held && registry == 0 ->     /* kvmd's restart: entries of the first registry are restored */
        registry = 1;
        entry[1] = k
     :: true
     fi;
     if
     :: held ->                      /* evicted, sooner or later */
#ifndef EVICTED_STAYS_READABLE
        atomic { true; begin_write(0, 0) }
#endif
        entry[registry] = 0
#ifndef SLOT_REUSED_BEFORE_WRITER_GONE
     :: !held -> answered[p] || ended[p]
#else
     :: !held
#endif
     fi;
     p++
  od
}
