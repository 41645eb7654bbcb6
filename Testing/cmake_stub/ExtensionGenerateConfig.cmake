# Slicer writes here what other extensions need to find this one.
file(WRITE "${CMAKE_BINARY_DIR}/${PROJECT_NAME}Config.cmake" "set(${PROJECT_NAME}_SOURCE_DIR \"${CMAKE_SOURCE_DIR}\")\n")
