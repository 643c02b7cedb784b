// Every pointer of every exported function: NULL, misaligned, and structs whose struct_size no release has had.
//
// The functions are those of exports.txt, which is compared with what the library exports; their parameters are
// deduced from the header. So a new function, or a new parameter, cannot be forgotten.
#include "support/host.hpp"

#include <cstddef>
#include <map>
#include <set>
#include <tuple>
#include <type_traits>
#include <utility>

namespace {

/** Whether a struct says its size. */
template <class T, class = void>
struct HasSize : std::false_type {};
template <class T>
struct HasSize<T, std::void_t<decltype(std::declval<T>().struct_size)>> : std::true_type {};

/** What calls are given where nothing is wrong. */
class Valid {
public:
    explicit Valid(skc_cache *cache) : cache_(cache) {}

    template <class T>
    T argument() {
        if constexpr (!std::is_pointer_v<T>) {
            // A layer, a sequence, a kind of call, a number of tokens: 1 is allowed of each.
            return T{1};
        } else {
            using Pointee = std::remove_const_t<std::remove_pointer_t<T>>;
            if constexpr (std::is_same_v<Pointee, skc_cache>) {
                return cache_;
            } else if constexpr (std::is_same_v<Pointee, char>) {
                return "SKC_DTYPE_F16";
            } else {
                return object<Pointee>();
            }
        }
    }

private:
    template <class T>
    T *object() {
        static T value{};
        if constexpr (std::is_same_v<T, skc_cache_config>) {
            static const auto owner = host::config();
            value = owner.get();
        } else if constexpr (HasSize<T>::value) {
            value = host::sized<T>();
        }
        return &value;
    }

    skc_cache *cache_;
};

/** Pointers that may be NULL, by function and parameter. */
const std::set<std::pair<std::string, std::size_t>> NULLABLE = {
    {"skc_save_sequence", 2},  // n_written
};

/** What has been tried of a function. */
struct Tried {
    int null = 0, misaligned = 0, sizes = 0;
};

class Pointers : public testing::Test {
protected:
    Pointers() : cache_(host::config(2, 2)) {
        const host::Ints seq{0}, n{7};
        const auto rows = host::rows(7, 1);
        for (std::uint32_t layer = 0; layer < 2; layer++) {
            const auto args = host::append_args(layer, seq, n, rows);
            EXPECT_OK(skc_append_kv(cache_.handle(), &args));
        }
    }

    /** The bytes of both sequences. */
    std::vector<std::vector<std::uint8_t>> contents() {
        std::vector<std::vector<std::uint8_t>> all;
        for (int seq = 0; seq < 2; seq++) {
            std::vector<std::uint8_t> bytes(1 << 15);
            std::uint64_t n = 0;
            const auto args = host::save_args(seq, bytes);
            EXPECT_OK(skc_save_sequence(cache_.handle(), &args, &n));
            bytes.resize(n);
            all.push_back(bytes);
        }
        return all;
    }

    template <class... Args>
    Tried try_all(const std::string &name, skc_status (*function)(Args...)) {
        Tried tried;
        try_each(name, function, tried, std::index_sequence_for<Args...>{});
        return tried;
    }

    /** A function that takes no pointer and cannot fail. */
    template <class R, class... Args>
    Tried try_all(const std::string &name, R (*function)(Args...)) {
        static_assert((!std::is_pointer_v<Args> && ...), "its pointers would not be tried");
        const R result = function(Valid(cache_.handle()).argument<Args>()...);
        if constexpr (std::is_pointer_v<R>) {
            EXPECT_NE(result, nullptr) << name;
        }
        return {};
    }

    sinkcache::Cache cache_;

private:
    template <class... Args, std::size_t... I>
    void try_each(const std::string &name, skc_status (*function)(Args...), Tried &tried, std::index_sequence<I...>) {
        (try_parameter<I>(name, function, tried), ...);
    }

    template <std::size_t I, class... Args>
    void try_parameter(const std::string &name, skc_status (*function)(Args...), Tried &tried) {
        using Parameters = std::tuple<Args...>;
        using Parameter = std::tuple_element_t<I, Parameters>;
        if constexpr (std::is_pointer_v<Parameter>) {
            SCOPED_TRACE(name + ", parameter " + std::to_string(I));
            using Pointee = std::remove_const_t<std::remove_pointer_t<Parameter>>;
            constexpr bool handle = std::is_same_v<Pointee, skc_cache>;
            const auto call = [&](Parameter value) {
                Parameters parameters{Valid(cache_.handle()).argument<Args>()...};
                std::get<I>(parameters) = value;
                return std::apply(function, parameters);
            };
            if (NULLABLE.count({name, I}) == 0) {
                tried.null++;
                EXPECT_REJECTED(call(nullptr), handle ? SKC_STATUS_INVALID_HANDLE : SKC_STATUS_NULL_POINTER, "NULL");
            }
            if constexpr (!handle && alignof(Complete<Pointee>) > 1) {
                tried.misaligned++;
                alignas(16) unsigned char bytes[sizeof(Pointee) + 1] = {};
                const Pointee good = *Valid(cache_.handle()).argument<Pointee *>();
                std::memcpy(bytes + 1, &good, sizeof good);
                EXPECT_REJECTED(call(reinterpret_cast<Parameter>(bytes + 1)), SKC_STATUS_INVALID_ARGUMENT, "align");
            }
            if constexpr (HasSize<Complete<Pointee>>::value) {
                // What an initialiser fills has no size yet.
                const bool filled = name.size() > 5 && name.compare(name.size() - 5, 5, "_init") == 0;
                const std::vector<std::uint32_t> sizes{0, 1, 7, 4097, UINT32_MAX};
                for (const std::uint32_t size : filled ? std::vector<std::uint32_t>{} : sizes) {
                    tried.sizes++;
                    Pointee wrong = *Valid(cache_.handle()).argument<Pointee *>();
                    wrong.struct_size = size;
                    EXPECT_REJECTED(call(&wrong), SKC_STATUS_VERSION_MISMATCH, std::to_string(size));
                }
            }
        }
    }

    /** In place of a handle, which is incomplete. */
    template <class T>
    using Complete = std::conditional_t<std::is_same_v<T, skc_cache>, char, T>;
};

TEST_F(Pointers, OfEveryFunction) {
    const auto before = contents();
    std::map<std::string, Tried> all;
#define CALL(name) all[#name] = try_all(#name, name);
#include "exported_calls.inc"
#undef CALL
    EXPECT_EQ(contents(), before);
    EXPECT_EQ(*Valid(cache_.handle()).argument<skc_cache **>(), nullptr) << "a cache was created";

    Tried total;
    for (const auto &[name, tried] : all) {
        total.null += tried.null;
        total.misaligned += tried.misaligned;
        total.sizes += tried.sizes;
    }
    std::printf("%zu functions, %d parameters NULL, %d misaligned, %d sizes of structs\n", all.size(), total.null,
                total.misaligned, total.sizes);
    EXPECT_GE(all.size(), 30u);
    EXPECT_GE(total.null, 50);
    EXPECT_GE(total.misaligned, 30);
    EXPECT_GE(total.sizes, 110);
}

}  // namespace
