/* Memory that a program holds and can do without. */
#ifndef SYM_BASE_MEMORY_H
#define SYM_BASE_MEMORY_H

/* Gives the system back what malloc has free, and the pages of programs and libraries that are as in their files: those
 * come again when they are touched, and what only a start needs (relocation, tables of names) does not. Takes about a
 * millisecond. Call it once, when the start is over. */
void memory_release(void);

#endif
