// NVML for tests: what a program that asks for libnvidia-ml.so.1 finds beside the emulated libcuda.so. As much of the library as
// prunectl calls, about one device, the emulated one, by its place on the bus. Its figures are made up and all different, so
// that one in another's place shows; its energy grows by a quarter of a joule with each question.
#include <cstdio>
#include <cstring>

namespace {

// nvmlReturn_t, nvmlClockType_t, nvmlTemperatureSensors_t and nvmlClocksThrottleReason* of nvml.h, by their names there.
enum Return { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_FOUND = 6 };
enum { CLOCK_SM = 1, CLOCK_MEM = 2 };
enum { TEMPERATURE_GPU = 0 };
enum { SW_POWER_CAP = 4, SW_THERMAL_SLOWDOWN = 32 };

// The attributes PCI_DOMAIN_ID, PCI_BUS_ID and PCI_DEVICE_ID of emulator/driver.cpp: a place where no GPU is.
constexpr char BUS_ID[] = "00000000:00:00.0";

struct PciInfo {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};
struct Memory {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

int the_device;

Return of_device(const void* device) { return device == &the_device ? SUCCESS : INVALID_ARGUMENT; }

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API int nvmlInit_v2() { return SUCCESS; }
API int nvmlShutdown() { return SUCCESS; }
API int nvmlSystemGetDriverVersion(char* text, unsigned length) {
    std::snprintf(text, length, "580.00.01");
    return SUCCESS;
}
API int nvmlDeviceGetCount_v2(unsigned* count) {
    *count = 1;
    return SUCCESS;
}
API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
    *device = &the_device;
    return index == 0 ? SUCCESS : INVALID_ARGUMENT;
}
API int nvmlDeviceGetHandleByPciBusId_v2(const char* bus_id, void** device) {
    *device = &the_device;
    return std::strcmp(bus_id, BUS_ID) == 0 ? SUCCESS : NOT_FOUND;
}
API int nvmlDeviceGetName(void* device, char* text, unsigned length) {
    std::snprintf(text, length, "prunectl emulated device");
    return of_device(device);
}
API int nvmlDeviceGetPciInfo_v3(void* device, PciInfo* info) {
    *info = {};
    std::snprintf(info->bus_id_legacy, sizeof(info->bus_id_legacy), "%s", BUS_ID + 4);
    std::snprintf(info->bus_id, sizeof(info->bus_id), "%s", BUS_ID);
    return of_device(device);
}
API int nvmlDeviceGetMemoryInfo_v2(void* device, Memory* info) {
    if (info->version != (sizeof(Memory) | 2u << 24)) {
        return INVALID_ARGUMENT;
    }
    info->total = 4ull << 30;
    info->reserved = 0;
    info->free = 3ull << 30;
    info->used = 1ull << 30;
    return of_device(device);
}
API int nvmlDeviceGetClockInfo(void* device, int clock, unsigned* mhz) {
    *mhz = clock == CLOCK_SM ? 1110 : 2220;
    return clock == CLOCK_SM || clock == CLOCK_MEM ? of_device(device) : INVALID_ARGUMENT;
}
API int nvmlDeviceGetMaxClockInfo(void* device, int clock, unsigned* mhz) {
    *mhz = 1980;
    return clock == CLOCK_SM ? of_device(device) : INVALID_ARGUMENT;
}
API int nvmlDeviceGetPowerUsage(void* device, unsigned* milliwatts) {
    *milliwatts = 123456;
    return of_device(device);
}
API int nvmlDeviceGetEnforcedPowerLimit(void* device, unsigned* milliwatts) {
    *milliwatts = 300000;
    return of_device(device);
}
API int nvmlDeviceGetTemperature(void* device, int sensor, unsigned* celsius) {
    *celsius = 45;
    return sensor == TEMPERATURE_GPU ? of_device(device) : INVALID_ARGUMENT;
}
API int nvmlDeviceGetCurrentClocksThrottleReasons(void* device, unsigned long long* reasons) {
    *reasons = SW_POWER_CAP | SW_THERMAL_SLOWDOWN;
    return of_device(device);
}
API int nvmlDeviceGetTotalEnergyConsumption(void* device, unsigned long long* millijoules) {
    static unsigned long long drawn = 1000000;
    *millijoules = drawn += 250;
    return of_device(device);
}
