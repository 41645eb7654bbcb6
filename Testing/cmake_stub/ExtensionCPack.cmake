# Slicer writes the extension's description here and sets up the package; the test reads the description.
set(lines "name=${PROJECT_NAME}\n")
foreach(key IN ITEMS HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS CATEGORY)
  string(APPEND lines "${key}=${EXTENSION_${key}}\n")
endforeach()
file(WRITE "${CMAKE_BINARY_DIR}/description.txt" "${lines}")
