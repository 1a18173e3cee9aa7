/* docs/PROTOCOL.md in Promela: one block, its generations, and one importer. region.pml and host_cache.pml say who writes it.
 *
 * Property: a copy that the checks let pass holds the bytes of its entry's key, and so does a block that an adopter is told it
 * has. Every write has a key of its own, numbered from 1; bytes come and go in two halves, so that torn copies exist, and a
 * half is known by the key that wrote it.
 *
 * -DNAME takes out the defence or the assumption (ASSUME_…) that stands under #ifndef NAME, or adds what it prevents.
 * check_model.py runs all of them and knows which must end in a counterexample. -DNEVER=… and -DNEVER_COPIED=… claim that
 * no copy is ever so. Readers change nothing for anybody, so one is enough, and when it has read all is `over`.
 */
#define OTHER 0                      /* bytes of no key: what the memory is used for once it is no region any more */
#define WRITES(p) (2 - (p))          /* a process begins; the first owner's keys are 1 and 2, the second process's is 3 */
#define KEY(p, n) (2 * (p) + (n))
#define WRITER(k) ((k) / 3)          /* the process that writes a key */

byte mem[4];                         /* the block's bytes; [2] and [3]: of a newcomer's memory */
byte gen[2];                         /* its generation; [1]: in another table than the first owner's */
byte memory[2], table[2];            /* which of them a process's region is: 0 or 1 */
byte row;                            /* the table whose region has the row; its region_epoch, as it were */
byte entry[2];                       /* the key of the index entry: [0] in the first registry, [1] in a restarted kvmd's */
byte registry;                       /* the one that kvmd fills; the other stays readable */
byte odd[4];                         /* [key]: the odd value that its write owns; its entry says this + 1 */
bool sent[4];                        /* [key]: its record is on the way to kvmd: may arrive late, more than once, or never */
bool alive[2], ended[2];             /* a process executes; its pidfd says that it has ended */
bool adopted, found, over;

#define CPU(p) (alive[p] && !over)   /* when a step of its own can happen; */
#ifndef ASSUME_PIDFD_WAITS_FOR_GPU   /* and when a store of its GPU's can land: also after its last own step */
#define LANDS(p) (!ended[p] && !over)
#else
#define LANDS(p) (!over)
#endif

#define ENDED 128                    /* the bit by which an owner has given the block up; bit 63 of the real counter */
#define GEN gen[table[p]]

inline begin_write(p, k) {           /* BeginWrite: one compare-exchange, unless the block has ended */
  if
#ifndef BEGIN_AFTER_END
  :: GEN >= ENDED -> odd[k] = 0
#endif
  :: else ->
#ifndef ODD_NOT_ADVANCED
     odd[k] = (GEN % ENDED + 1) | 1;
#else
     odd[k] = GEN | 1;
#endif
     GEN = odd[k]
  fi
}

inline finish_write(p, k, readable) { /* FinishWrite: one compare-exchange */
#ifndef FINISH_WITHOUT_CAS
  readable = (odd[k] != 0 && GEN == odd[k]);
#else
  readable = (odd[k] != 0);
#endif
  if :: readable -> GEN = odd[k] + 1 :: else fi
}

inline end(p) {                      /* End: one atomic or */
#ifndef END_WITHOUT_BIT
  GEN = GEN | 1 | ENDED
#else
  GEN = GEN | 1
#endif
}

inline take_up(p) {                  /* TakeUp: what the last owner gave up can be written again, under higher values */
  if :: GEN >= ENDED -> GEN = (GEN % ENDED + 1) | 1 :: else fi
}

#define SHOWS(t, k) (gen[t] == odd[k] + 1)

/* ---- Importer: a CPU thread from end to end, or checks of the CPU around a GPU's copy in stream order ----------------- */

active proctype Importer() {
  byte k, at, half[2];
  bool from_first;
  atomic {                           /* Find: whichever registry it has mapped; a match may be kept for as long as one likes */
    !over;
    if
    :: entry[0] != 0 -> k = entry[0]; from_first = true
    :: entry[1] != 0 -> k = entry[1]
    fi;
    found = true;
    at = row;                        /* the mapping of the entry's row, if that is the entry's region still */
#ifndef ROW_WITHOUT_EPOCH
    if :: at == table[WRITER(k)] :: else -> goto done fi
#endif
  }
#ifndef NO_FIRST_CHECK
  if :: SHOWS(at, k) :: else -> goto done fi;
#endif
  if                                 /* the copy; the pieces of a block are in no order */
  :: half[0] = mem[2 * memory[at]]; half[1] = mem[2 * memory[at] + 1]
  :: half[1] = mem[2 * memory[at] + 1]; half[0] = mem[2 * memory[at]]
  fi;
#ifdef NEVER_COPIED
  assert(!(NEVER_COPIED));
#endif
#ifndef NO_SECOND_CHECK
  if :: SHOWS(at, k) :: else -> goto done fi;
#endif
  assert(half[0] == k && half[1] == k); /* validated */
#ifdef NEVER
  assert(!(NEVER));
#endif
done:
  atomic { over = true; k = 0; at = 0; half[0] = 0; half[1] = 0 }
}

#ifdef FORK_KEEPS_MAPPING            /* no MADV_DONTFORK: a child outlives the process, and nobody waits for it */
active proctype Child() { mem[0] = OTHER }
#endif
