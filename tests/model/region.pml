/* A block of a worker's region: its owner, kvmd, kvmd's restart, an adopter, or a newcomer in the region's row. */
#include "protocol.pml"

/* ---- Owner, and whoever comes after it: a scheduler that begins writes, streams and workers that end them ------------- */

bool gone;                           /* the first owner has given its region up */
byte landed[2];                      /* writes of this process whose bytes are complete, in the order of their beginning */

inline publish(p, k) {               /* where the compare-exchange fails, another write has begun: nothing is published */
#ifdef OVERWRITE_BEFORE_BEGIN
  odd[k] != 0;
#endif
  atomic { CPU(p); finish_write(p, k, readable) }
  if :: atomic { readable && CPU(p) && !found; sent[k] = true } :: !readable fi
}

proctype Write(byte p; byte n; byte k) {
  bool readable;
#ifdef FINISH_BEFORE_LANDED
  publish(p, k);
#endif
#ifndef ASSUME_WRITES_LAND_IN_ORDER
  atomic { LANDS(p) && landed[p] == n - 1; mem[2 * memory[p]] = k }
#else
  atomic { LANDS(p); mem[2 * memory[p]] = k }
#endif
  atomic { LANDS(p); mem[2 * memory[p] + 1] = k; landed[p]++ }
#ifndef FINISH_BEFORE_LANDED
  publish(p, k)
#endif
}

proctype Scheduler(byte p) {
  byte n, reused;
  do
  :: atomic {                        /* reuses the block, whatever has become of the write before */
       CPU(p) && n < WRITES(p);
       n++;
#ifndef OVERWRITE_BEFORE_BEGIN
       begin_write(p, KEY(p, n));
       run Write(p, n, KEY(p, n))
     }
#else
       run Write(p, n, KEY(p, n))
     }
     atomic { CPU(p); begin_write(p, KEY(p, n)) }
#endif
  :: atomic {                        /* Unregister, or any other end of ownership. kvmd need not be there; if it is, */
       CPU(p) && p == 0 && !gone;    /* it may still take this region for one that waits for its owner, or for an adopter */
       gone = true;
#ifndef NO_ODD_AT_UNREGISTER
       end(p)
#endif
     }
  :: atomic {                        /* the memory is used for something else */
       CPU(p) && p == 0 && gone && reused < 2;
       mem[2 * memory[p] + reused] = OTHER;
       reused++
     }
  od
}

active proctype FirstOwner() {
  atomic { alive[0] = true; run Scheduler(0) }
  atomic { !over; alive[0] = false } /* killed between any two steps, or never */
  atomic { !over; ended[0] = true }
}

active proctype Adopter() {
  byte k, half[2];
  atomic {
    if
#ifndef ADOPT_BEFORE_DEATH
    :: ended[0] && !over ->
#else
    :: !over ->                      /* its connection has ended, and that is all */
#endif
       adopted = true;               /* its memory and its table, and what the index knows of them */
#ifdef NEW_TABLE_AT_ADOPTION
       table[1] = 1; row = 1;
#endif
#ifdef GENERATIONS_START_OVER
       gen[0] = 0;
#endif
       take_up(1);
       if
       :: !found && entry[registry] != 0 && SHOWS(0, entry[registry]) -> k = entry[registry]
       :: true
       fi
    :: (gone || ended[0]) && !over -> /* a newcomer instead: the first region is withdrawn, and its row is free again */
       table[1] = 1; memory[1] = 1; row = 1
    fi;
    alive[1] = true
  }
  if
  :: k == 0 -> run Scheduler(1)
  :: else ->                         /* it reads what it has been given */
     half[0] = mem[0];
     half[1] = mem[1];
     assert(half[0] == k && half[1] == k); /* adopted */
#ifdef NEVER_ADOPTED
     assert(!(NEVER_ADOPTED));
#endif
     over = true
  fi
}

/* ---- kvmd: records become entries of the registry that it fills ------------------------------------------------------- */

active proctype Kvmd() {
  byte k;
  do
  :: atomic {
       if :: sent[1] -> k = 1 :: sent[2] -> k = 2 :: sent[3] -> k = 3 fi;
       !found && !over && SHOWS(table[WRITER(k)], k);
       entry[registry] = k;          /* stale from now on, or already: the same. A record that is sent again comes here, too */
       k = 0
     }
  :: atomic { registry == 0 && !found && !over; registry = 1 } /* killed, and another one starts */
  od
}
