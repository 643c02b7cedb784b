// Stubs (patch.cpp) call this: it saves every register that C++ code may change, calls isa_emulator_run(Run*, State*), and restores
// them from where that has changed them. The stack has, from its top: address of return, 128 bytes of red zone.

#define GENERAL 128             // 16 registers of 8 bytes
#define RED_ZONE 128
#define STUB_TAIL 13            // bytes of a stub between the address of return and its Run
#define K 2048                  // State (execute.hpp)
#define MXCSR 2112
#define POINTER 2120
#define STATE 2176

.text
.globl isa_emulator_entry
.hidden isa_emulator_entry
.type isa_emulator_entry, @function
isa_emulator_entry:
    pushfq
    pushq %r15
    pushq %r14
    pushq %r13
    pushq %r12
    pushq %r11
    pushq %r10
    pushq %r9
    pushq %r8
    pushq %rdi
    pushq %rsi
    pushq %rbp
    pushq %rsp                  // its place: the right value follows
    pushq %rbx
    pushq %rdx
    pushq %rcx
    pushq %rax
    movq %rsp, %rbp
    leaq GENERAL + 8 + 8 + RED_ZONE(%rbp), %rax
    movq %rax, 4 * 8(%rbp)
    movq GENERAL + 8(%rbp), %rdi
    addq $STUB_TAIL, %rdi
    subq $STATE, %rsp
    andq $-64, %rsp
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovdqa64 %zmm\n, 64 * \n(%rsp)
.endr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq %k\n, K + 8 * \n(%rsp)
.endr
    stmxcsr MXCSR(%rsp)
    movq %rbp, POINTER(%rsp)
    ldmxcsr tile_mxcsr(%rip)
    cld
    movq %rsp, %rsi
    call isa_emulator_run
    ldmxcsr MXCSR(%rsp)
.irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq K + 8 * \n(%rsp), %k\n
.endr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovdqa64 64 * \n(%rsp), %zmm\n
.endr
    movq %rbp, %rsp
    popq %rax
    popq %rcx
    popq %rdx
    popq %rbx
    leaq 8(%rsp), %rsp
    popq %rbp
    popq %rsi
    popq %rdi
    popq %r8
    popq %r9
    popq %r10
    popq %r11
    popq %r12
    popq %r13
    popq %r14
    popq %r15
    popfq
    retq
.size isa_emulator_entry, .-isa_emulator_entry

.section .rodata
.balign 4
// All exceptions masked, round to nearest, denormals are zero, results that would be denormal too.
tile_mxcsr:
    .long 0x9FC0

.section .note.GNU-stack, "", @progbits
